import pytest
from toy import characters


@pytest.fixture(scope="session")
def tokenizer():
    return characters()
