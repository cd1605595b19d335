"""Rows of generated text: each starts its own text and has exactly its length."""

from itertools import islice

import polars as pl
import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from needlework.config.finetune_data import RecallExamples
from needlework.finetune_data.recall import make_examples
from needlework.finetune_data.recall_text import recall_text
from needlework.tasks.seeds import stream_seed

pytestmark = pytest.mark.slow


def test_each_row_starts_its_own_text(tokenizer):
    config = RecallExamples(examples=9, length=[64, 300, 1024], recall_fraction=0.7)
    table = make_examples(config, tokenizer, 42)
    assert table.schema == {"input_ids": pl.List(pl.Int32)}
    rows = table["input_ids"].to_list()
    assert [len(row) for row in rows] == [64, 300, 1024] * 3
    for number, row in enumerate(rows):
        sentences = recall_text(stream_seed(42, "recall_examples", number), 0.7)
        whole = tokenizer.encode("".join(islice(sentences, 1024))).ids
        assert row == whole[: len(row)]
    assert len({tuple(row[:64]) for row in rows}) == 9
    assert make_examples(config, tokenizer, 42).equals(table)
    assert not make_examples(config, tokenizer, 43).equals(table)


@pytest.fixture
def sentence_tokenizer() -> Tokenizer:
    """One token per sentence, so that a text approaches its length in small steps."""
    tokenizer = Tokenizer(WordLevel({"any": 0}, unk_token="any"))
    tokenizer.pre_tokenizer = Split(Regex(r"[.?]"), "merged_with_previous")
    return tokenizer


def test_every_row_has_exactly_its_length(sentence_tokenizer):
    lengths = list(range(64, 200))
    config = RecallExamples(examples=len(lengths), length=lengths, recall_fraction=0.3)
    table = make_examples(config, sentence_tokenizer, 1)
    assert table["input_ids"].list.len().to_list() == lengths


@pytest.mark.timeout(60)
def test_truncation_of_the_tokenizer_has_no_effect(byte_tokenizer):
    config = RecallExamples(examples=2, length=[64, 200], recall_fraction=0.3)
    truncating = Tokenizer.from_str(byte_tokenizer.to_str())
    truncating.enable_truncation(8)
    assert make_examples(config, truncating, 1).equals(make_examples(config, byte_tokenizer, 1))
