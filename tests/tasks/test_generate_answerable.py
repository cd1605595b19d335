"""A careful reader answers every sample; one who picks another key answers none."""

import re

import pytest
from support.readers import READERS, read_magic_values

from needlework.config.tasks.needles import FreeNeedle, Needles
from needlework.config.tasks.niah import (
    Niah,
    NiahMultikey1,
    NiahMultikey2,
    NiahMultikey3,
    NiahMultiquery,
    NiahMultivalue,
    NiahSingle1,
    NiahSingle2,
    NiahSingle3,
)
from needlework.config.tasks.passkey import Passkey
from needlework.config.tasks.vt import VariableTracking
from needlework.config.tasks.words import CommonWords, FrequentWords
from needlework.scoring.metrics import exact, match_all
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.haystacks.words import is_held_out

pytestmark = pytest.mark.slow

DEPTHS = [0.0, 50.0, 100.0]
INVENTED = {
    "numbers": "31",
    "words": "made-up",
    "uuids": "01234567-89ab-4cde-8f01-23456789abcd",
    "text": "an invented key",
}
FREE = Needles(
    needles=[
        FreeNeedle(text="The red door opens with a song.", answer="a song"),
        FreeNeedle(text="The green door opens with a whistle.", answer="a whistle"),
    ],
    question="What opens the red and the green door?",
)
TASKS = [
    Passkey(),
    Passkey(shots=2),
    NiahSingle1(),
    NiahSingle2(),
    NiahSingle3(),
    NiahMultikey1(),
    NiahMultikey2(),
    NiahMultikey3(),
    NiahMultivalue(),
    NiahMultiquery(),
    Niah(haystack="sentences", key_type="uuids", value_type="words", keys=7, queries=2, values=2),
    FREE,
    VariableTracking(),
    VariableTracking(chains=3, hops=2),
    VariableTracking(haystack="essay", chains=2),
    CommonWords(),
    CommonWords(common_words=4, common_repeats=9, other_repeats=2),
    FrequentWords(),
    FrequentWords(alpha=1.5, letters=4, vocabulary=50),
]


def make(task, tokenizer, *, length=2500, count=4, depths=DEPTHS):
    sampler = Sampler(task, tokenizer, task_name="t", length=length, depths=depths, seed=3)
    return make_samples(sampler, count)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.type)
@pytest.mark.parametrize("length", [2500, 7000])
def test_the_reference_reader_answers_every_sample(task, tokenizer, length):
    for row in make(task, tokenizer, length=length).iter_rows(named=True):
        right, wrong = READERS[task.module](row["prompt"])
        assert sorted(right) == sorted(row["outputs"])
        assert match_all(" ".join(right), row["outputs"]) == 1
        answer = ", ".join(wrong) or INVENTED[row["value_type"]]
        assert match_all(answer, row["outputs"]) == 0
        if row["value_type"] != "text":
            numbered = " ".join(f"{i}) {value}" for i, value in enumerate(right, 1))
            prediction = " ".join(right) if row["value_type"] == "numbers" else numbered
            assert exact(prediction, row["outputs"], row["value_type"]) == 1
            assert exact(answer, row["outputs"], row["value_type"]) == 0


@pytest.mark.parametrize(
    ("task", "fewest"),
    [
        (NiahMultikey1(), 3),
        (NiahMultikey2(), 20),
        (Niah(keys=4, queries=2), 2),
        (Passkey(shots=2), 2),
        (VariableTracking(chains=3, hops=2), 6),
    ],
)
def test_prompts_contain_the_other_keys_of_the_task(task, fewest, byte_tokenizer):
    for prompt in make(task, byte_tokenizer)["prompt"]:
        assert len(READERS[task.module](prompt).wrong) >= fewest


@pytest.mark.parametrize(
    "task", [NiahSingle1(), NiahMultikey1(), Niah(keys=40), Niah(haystack="sentences", keys=7)]
)
def test_every_magic_needle_is_recorded_once(task, tokenizer):
    for row in make(task, tokenizer, count=9).iter_rows(named=True):
        right, wrong = read_magic_values(row["prompt"])
        needles = row["needles"]
        assert sorted(right + wrong) == sorted(needle["value"] for needle in needles)
        assert len({needle["value"] for needle in needles}) == task.keys
        assert len({needle["key"] for needle in needles}) == task.keys
        assert len({needle["depth_percent"] for needle in needles}) == task.keys
        assert row["prompt"].count(needles[0]["key"]) == 3


def test_other_needles_vary_in_depth(byte_tokenizer):
    table = make(NiahMultikey1(), byte_tokenizer, length=600, count=9, depths=[50])
    others = [tuple(n["depth_percent"] for n in needles[1:]) for needles in table["needles"]]
    assert len(set(others)) == 9
    ranks = set()
    for needles in table["needles"]:
        ranks.add(sum(n["token_position"] < needles[0]["token_position"] for n in needles))
    assert len(ranks) > 1


def test_noise_has_one_paragraph_per_line(byte_tokenizer):
    line = (
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    )
    for context in make(NiahSingle1(), byte_tokenizer, length=900)["context"]:
        intro, *lines = context.rstrip("\n").split("\n")
        assert intro.startswith("A special magic number is hidden within the following text.")
        noise = [text for text in lines if not text.startswith("One of")]
        assert len(noise) == len(lines) - 1
        assert noise[:-1] == [line] * (len(noise) - 1)
        assert line.startswith(noise[-1])
        assert noise[-1]


def test_sentences_are_not_cut(byte_tokenizer):
    for context in make(NiahMultikey1(), byte_tokenizer, length=900)["context"]:
        text = context.split("\n")[1]
        parts = [f"{part}." for part in text.removesuffix(".").split(". ")]
        needles = [part for part in parts if part.startswith("One of the special")]
        assert len(needles) == 4
        for part in set(parts) - set(needles):
            assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+){3,4}\.", part)


def test_held_out_keys_use_held_out_words(byte_tokenizer):
    task = NiahMultikey1(key_words="held_out")
    table = make(task, byte_tokenizer, length=600, count=9)
    keys = [needle["key"] for needles in table["needles"] for needle in needles]
    assert all(is_held_out(word) for key in keys for word in key.split("-"))
