"""Lengths in characters, for models without a public tokenizer."""

import pytest

from needlework.config.tasks.passkey import Passkey
from needlework.tasks.generate import Sampler
from needlework.tasks.prompts.tokenizer import open_tokenizer


@pytest.mark.parametrize("length", [400, 3000])
def test_every_character_counts(length: int):
    task = Passkey(type="passkey")
    sampler = Sampler(
        task,
        open_tokenizer(None),
        task_name="passkey",
        length=length,
        depths=[0, 50],
        seed=1,
        length_unit="characters",
    )
    for index in range(3):
        row = sampler.sample(index)
        assert row["tokens"] == len(row["prompt"]) <= length
        (needle,) = row["needles"]
        assert needle["value"] in row["prompt"][needle["token_position"] :][:80]


def test_every_character_is_one_token():
    text = "a\nb  c\tünï 日本 🙂.\r\n"
    encoding = open_tokenizer(None).encode(text)
    assert [text[slice(*offsets)] for offsets in encoding.offsets] == list(text)
