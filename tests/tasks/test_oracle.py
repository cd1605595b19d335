"""A careful reader of the prompt answers every sample; one that takes another key, none."""

import re

import pytest

from needlework.config.tasks import Niah, NiahMultikey1, NiahSingle1, Passkey
from needlework.tasks.generate import samples
from needlework.tasks.words import is_held_out

DEPTHS = [0.0, 50.0, 100.0]


def pass_key(prompt: str) -> list[str]:
    return re.findall(r"The pass key is (\d+)\. Remember it\. \1 is the pass key\.", prompt)


def magic_numbers(prompt: str) -> list[tuple[str, str]]:
    return re.findall(r"One of the special magic numbers for ([a-z-]+) is: (\d{7})\.", prompt)


def asked_key(prompt: str) -> str:
    question = r"\nWhat is the special magic number for (\S+) mentioned in the provided text\?"
    prefix = r" The special magic number for \1 mentioned in the provided text is$"
    return re.search(question + prefix, prompt)[1]


def test_passkey(tokenizer):
    table = samples(
        Passkey(), tokenizer, task_name="t", length=600, count=12, depths=DEPTHS, seed=3
    )
    for prompt, outputs in table.select("prompt", "outputs").iter_rows():
        assert pass_key(prompt) == outputs
        assert prompt.endswith("\nWhat is the pass key? The pass key is")
        assert len(outputs[0]) == 5


@pytest.mark.parametrize(
    "task", [NiahSingle1(), NiahMultikey1(), Niah(keys=40), Niah(haystack="sentences", keys=7)]
)
def test_niah(tokenizer, task):
    table = samples(task, tokenizer, task_name="t", length=2500, count=9, depths=DEPTHS, seed=3)
    for prompt, outputs, needles in table.select("prompt", "outputs", "needles").iter_rows():
        found = magic_numbers(prompt)
        numbers, key = dict(found), asked_key(prompt)
        assert [numbers[key]] == outputs
        assert len(found) == len(numbers) == len(set(numbers.values())) == task.keys
        assert numbers == {needle["key"]: needle["value"] for needle in needles}
        wrong = [number for other, number in numbers.items() if other != key]
        assert not any(number in outputs for number in wrong)
        assert len({needle["depth_percent"] for needle in needles}) == task.keys
        assert prompt.count(key) == 3


def test_needles_not_asked_for_move_about(byte_tokenizer):
    table = samples(
        NiahMultikey1(), byte_tokenizer, task_name="t", length=600, count=9, depths=[50], seed=3
    )
    others = [tuple(n["depth_percent"] for n in needles[1:]) for needles in table["needles"]]
    assert len(set(others)) == 9
    ranks = set()
    for needles in table["needles"]:
        ranks.add(sum(n["token_position"] < needles[0]["token_position"] for n in needles))
    assert len(ranks) > 1


def test_noise_is_one_paragraph_a_line(byte_tokenizer):
    table = samples(
        NiahSingle1(), byte_tokenizer, task_name="t", length=900, count=3, depths=DEPTHS, seed=3
    )
    line = (
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    )
    for context in table["context"]:
        intro, *lines = context.rstrip("\n").split("\n")
        assert intro.startswith("A special magic number is hidden within the following text.")
        hay = [text for text in lines if not text.startswith("One of")]
        assert len(hay) == len(lines) - 1
        assert hay[:-1] == [line] * (len(hay) - 1)
        assert line.startswith(hay[-1])
        assert hay[-1]


def test_sentences_stay_whole(byte_tokenizer):
    table = samples(
        NiahMultikey1(), byte_tokenizer, task_name="t", length=900, count=3, depths=DEPTHS, seed=3
    )
    for context in table["context"]:
        text = context.split("\n")[1]
        parts = [f"{part}." for part in text.removesuffix(".").split(". ")]
        needles = [part for part in parts if part.startswith("One of the special")]
        assert len(needles) == 4
        for part in set(parts) - set(needles):
            assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+){3,4}\.", part)


def test_held_out_keys_are_new_to_training(byte_tokenizer):
    table = samples(
        NiahMultikey1(key_words="held_out"),
        byte_tokenizer,
        task_name="t",
        length=600,
        count=9,
        depths=DEPTHS,
        seed=3,
    )
    keys = [needle["key"] for needles in table["needles"] for needle in needles]
    assert all(is_held_out(word) for key in keys for word in key.split("-"))
