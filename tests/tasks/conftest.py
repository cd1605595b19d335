"""Fixtures of the tasks: tokenizers, and fewer samples behind a suggested length."""

import pytest
from support.tokenizer_fixtures import *  # noqa: F403

from needlework.tasks import generate


@pytest.fixture
def probed_samples(monkeypatch: pytest.MonkeyPatch) -> int:
    """Samples that a suggested length is checked with: enough to differ, quicker than 128."""
    monkeypatch.setattr(generate, "PROBED_SAMPLES", 12)
    return 12
