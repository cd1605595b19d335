"""Fixtures: three kinds of tokenizers."""

import pytest
from support.toy_tokenizers import KINDS, byte_level, metaspace
from tokenizers import Tokenizer


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request) -> Tokenizer:
    return KINDS[request.param]()


@pytest.fixture(scope="session", params=["byte_level", "metaspace"])
def either_tokenizer(request) -> Tokenizer:
    """One with counts that add up, and one without."""
    return KINDS[request.param]()


@pytest.fixture(scope="session", params=["byte_level", "merging_newlines"])
def additive_tokenizer(request) -> Tokenizer:
    return KINDS[request.param]()


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return byte_level()


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> Tokenizer:
    return metaspace()
