"""Data of the tests of token sources and document readers."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A tokenizer of the words w1, w2, ... that starts texts with id 0 and truncates them."""
    words = {"<s>": 0, **{f"w{i}": i for i in range(1, 61)}}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.enable_truncation(5)
    return tokenizer
