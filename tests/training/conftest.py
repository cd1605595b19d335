import pytest
from support.toy_training import characters


@pytest.fixture(scope="session")
def tokenizer():
    return characters()
