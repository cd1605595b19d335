"""Sentences by Punkt: nothing lost, the same each time, and counted as a tokenizer counts them."""

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
from needlework.tasks.haystacks.punkt import (
    OVERSUPPLY,
    TRAINING_CHARACTERS,
    sentence_table,
    split_sentences,
)

WORDS = dict.fromkeys(
    word for text in read_texts(ESSAYS) for word in text.split() if word.isalpha()
)
ABBREVIATED = " ".join(
    f"We met Fr. Alder {word} today. It was approx. nine in the {word}." for word in WORDS
)
"""Teaches Punkt two abbreviations."""


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data in the place and form of punkt_tab, whose only abbreviation is `sacks`."""
    folder = tmp_path / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    parameters = PunktTrainer().get_params()
    parameters.abbrev_types = {"sacks"}
    save_punkt_params(parameters, dir=str(folder))
    return folder


def bare(text: str) -> str:
    return "".join(text.split())


@pytest.mark.usefixtures("not_installed")
def test_essays_become_sentences():
    found = list(split_sentences(read_texts(ESSAYS)))
    assert bare("".join(found)) == bare("".join(read_texts(ESSAYS)))
    assert all(re.fullmatch(r"\S+( \S+)*", sentence) for sentence in found)
    assert 300 < len(found) < 400
    assert "He said this in the tone in which one speaks of a person who was let go." in found
    assert any("At 7 a.m. I" in s or s == "At 7 a.m." for s in found)
    assert "The station at St. Ebb's has those dates, of course," in " ".join(found)
    assert not any(sentence.endswith("St.") for sentence in found)


@given(st.lists(st.text(alphabet="aA .!?\"')\n\t1é", max_size=40), max_size=4))
def test_nothing_is_lost(parts: list[str]):
    found = list(split_sentences(parts))
    assert bare("".join(found)) == bare("".join(parts))
    assert all(sentence == " ".join(sentence.split()) != "" for sentence in found)


@pytest.mark.usefixtures("not_installed")
def test_abbreviations_are_learned_from_the_text(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    text = "We met Fr. Alder at the mill. It was approx. nine in the evening."
    expected = ["We met Fr. Alder at the mill.", "It was approx. nine in the evening."]
    assert list(split_sentences([ABBREVIATED, text]))[-2:] == expected
    assert list(split_sentences([text])) != expected
    assert f"trained on {len(ABBREVIATED) + 2 + len(text)} characters of the text" in caplog.text


def test_installed_data_comes_first(installed: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    text = " He sold\n\nnine sacks. Then he left. "
    # RULER: white space made single spaces, then nltk's sent_tokenize.
    expected = nltk.sent_tokenize(re.sub(r"\s+", " ", text).strip())
    assert expected == ["He sold nine sacks. Then he left."]
    assert list(split_sentences([text])) == expected
    assert f"by nltk's punkt_tab data in {installed}" in caplog.text
    assert "trained" not in caplog.text


@pytest.mark.usefixtures("not_installed")
def test_training_reads_no_more_than_it_needs():
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield ABBREVIATED

    next(split_sentences(endless()))
    assert len(asked) == -(-TRAINING_CHARACTERS // len(ABBREVIATED))


def test_the_same_in_every_process():
    code = "from needlework.tasks.haystacks.punkt import split_sentences;"
    code += "from needlework.sources.texts import read_texts;"
    code += f"print('|'.join(split_sentences(read_texts({str(ESSAYS)!r}))))"
    found = {
        hashlib.sha256(
            subprocess.run(
                [sys.executable, "-c", code],
                check=True,
                capture_output=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": seed},
            ).stdout
        ).hexdigest()
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_tokens_are_those_of_the_sentence_and_its_space(additive_tokenizer):
    table = sentence_table(read_texts(ESSAYS), additive_tokenizer, 10**6)
    assert table["sentence"].to_list() == list(split_sentences(read_texts(ESSAYS)))
    for sentence, tokens in table.iter_rows():
        assert tokens == len(additive_tokenizer.encode(f" {sentence}", add_special_tokens=False))


def test_tokens_add_up_in_a_running_text(additive_tokenizer):
    table = sentence_table(read_texts(ESSAYS), additive_tokenizer, 10**6)
    whole = "".join(f" {sentence}" for sentence in table["sentence"])
    assert table["tokens"].sum() == len(additive_tokenizer.encode(whole, add_special_tokens=False))


def test_a_tokenizer_set_to_cut_is_not_cut(byte_tokenizer):
    expected = sentence_table(read_texts(ESSAYS), byte_tokenizer, 10**6)
    cut = type(byte_tokenizer).from_str(byte_tokenizer.to_str())
    cut.enable_truncation(8)
    assert sentence_table(read_texts(ESSAYS), cut, 10**6).equals(expected)


def test_reading_stops_when_there_is_enough(byte_tokenizer):
    one = "".join(read_texts(ESSAYS))
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield one

    longest = 600_000
    table = sentence_table(endless(), byte_tokenizer, longest)
    tokens = table["tokens"]
    assert OVERSUPPLY == 1.25
    assert tokens.sum() >= 1.25 * longest
    assert tokens[:-1000].sum() < 1.25 * longest
    per_text = len(byte_tokenizer.encode(one, add_special_tokens=False))
    for_training = -(-TRAINING_CHARACTERS // len(one))
    assert len(asked) <= max(for_training, 1.25 * longest / per_text + 4)
