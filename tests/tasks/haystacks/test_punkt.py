"""Punkt sentences: nothing is lost, the result is reproducible, token counts are right."""

import hashlib
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params
from support.paths import ESSAYS, ROOT

from needlework.sources.texts import read_texts
from needlework.tasks.haystacks import punkt
from needlework.tasks.haystacks.punkt import OVERSUPPLY, sentence_table, split_sentences

pytestmark = pytest.mark.slow

WORDS = dict.fromkeys(
    word for text in read_texts(ESSAYS) for word in text.split() if word.isalpha()
)
ABBREVIATED = " ".join(
    f"We met Fr. Alder {word} today. It was approx. nine in the {word}." for word in WORDS
)
"""Text from which Punkt learns two abbreviations."""


@pytest.fixture
def without_nltk_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])


@pytest.fixture
def nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data in place of punkt_tab, with `sacks` as its only abbreviation."""
    folder = tmp_path / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    parameters = PunktTrainer().get_params()
    parameters.abbrev_types = {"sacks"}
    save_punkt_params(parameters, dir=str(folder))
    return folder


def without_spaces(text: str) -> str:
    return "".join(text.split())


@pytest.mark.usefixtures("without_nltk_data")
def test_essays_are_split_into_sentences():
    result = list(split_sentences(read_texts(ESSAYS)))
    assert without_spaces("".join(result)) == without_spaces("".join(read_texts(ESSAYS)))
    assert all(re.fullmatch(r"\S+( \S+)*", sentence) for sentence in result)
    assert 300 < len(result) < 400
    assert "He said this in the tone in which one speaks of a person who was let go." in result
    assert any("At 7 a.m. I" in s or s == "At 7 a.m." for s in result)
    assert "The station at St. Ebb's has those dates, of course," in " ".join(result)
    assert not any(sentence.endswith("St.") for sentence in result)


@given(st.lists(st.text(alphabet="aA .!?\"')\n\t1é", max_size=40), max_size=4))
def test_no_text_is_lost(parts: list[str]):
    result = list(split_sentences(parts))
    assert without_spaces("".join(result)) == without_spaces("".join(parts))
    assert all(sentence == " ".join(sentence.split()) != "" for sentence in result)


@pytest.mark.usefixtures("without_nltk_data")
def test_abbreviations_are_learned_from_the_text(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    text = "We met Fr. Alder at the mill. It was approx. nine in the evening."
    expected = ["We met Fr. Alder at the mill.", "It was approx. nine in the evening."]
    assert list(split_sentences([ABBREVIATED, text]))[-2:] == expected
    assert list(split_sentences([text])) != expected
    assert f"trained on {len(ABBREVIATED) + 2 + len(text)} characters of the text" in caplog.text


def test_installed_data_takes_precedence(nltk_data: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    text = " He sold\n\nnine sacks. Then he left. "
    # RULER collapses white space, then calls nltk's sent_tokenize.
    expected = nltk.sent_tokenize(re.sub(r"\s+", " ", text).strip())
    assert expected == ["He sold nine sacks. Then he left."]
    assert list(split_sentences([text])) == expected
    assert f"nltk's punkt_tab data in {nltk_data}" in caplog.text
    assert "trained" not in caplog.text


@pytest.mark.usefixtures("without_nltk_data")
def test_training_reads_only_the_text_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(punkt, "TRAINING_CHARACTERS", 100_000)
    reads = []

    def endless():
        while True:
            reads.append(1)
            yield ABBREVIATED

    next(split_sentences(endless()))
    assert len(reads) == -(-100_000 // len(ABBREVIATED))


def test_sentences_are_the_same_in_every_process():
    code = "from needlework.tasks.haystacks.punkt import split_sentences;"
    code += "from needlework.sources.texts import read_texts;"
    code += f"print('|'.join(split_sentences(read_texts({str(ESSAYS)!r}))))"
    result = {
        hashlib.sha256(
            subprocess.run(
                [sys.executable, "-c", code],
                check=True,
                capture_output=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": seed},
            ).stdout
        ).hexdigest()
        for seed in ("1", "2")
    }
    assert len(result) == 1


def test_tokens_count_the_sentence_and_its_space(additive_tokenizer):
    table = sentence_table(read_texts(ESSAYS), additive_tokenizer, 10**6)
    assert table["sentence"].to_list() == list(split_sentences(read_texts(ESSAYS)))
    for sentence, tokens in table.iter_rows():
        assert tokens == len(additive_tokenizer.encode(f" {sentence}", add_special_tokens=False))


def test_tokens_add_up_in_running_text(additive_tokenizer):
    table = sentence_table(read_texts(ESSAYS), additive_tokenizer, 10**6)
    whole = "".join(f" {sentence}" for sentence in table["sentence"])
    assert table["tokens"].sum() == len(additive_tokenizer.encode(whole, add_special_tokens=False))


def test_truncation_of_the_tokenizer_has_no_effect(byte_tokenizer):
    expected = sentence_table(read_texts(ESSAYS), byte_tokenizer, 10**6)
    truncating = type(byte_tokenizer).from_str(byte_tokenizer.to_str())
    truncating.enable_truncation(8)
    assert sentence_table(read_texts(ESSAYS), truncating, 10**6).equals(expected)


def test_reading_stops_at_the_needed_tokens(byte_tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(punkt, "TRAINING_CHARACTERS", 100_000)
    essays = "".join(read_texts(ESSAYS))
    reads = []

    def endless():
        while True:
            reads.append(1)
            yield essays

    longest = 100_000
    table = sentence_table(endless(), byte_tokenizer, longest)
    tokens = table["tokens"]
    assert OVERSUPPLY == 1.25
    assert tokens.sum() >= 1.25 * longest
    assert tokens[:-1000].sum() < 1.25 * longest
    per_text = len(byte_tokenizer.encode(essays, add_special_tokens=False))
    for_training = -(-100_000 // len(essays))
    assert len(reads) <= max(for_training, 1.25 * longest / per_text + 4)
