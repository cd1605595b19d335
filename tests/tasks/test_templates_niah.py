"""RULER's needle tasks with templates in another language."""

import pytest
from pydantic import ValidationError

from needlework.config.tasks.niah import Niah
from needlework.tasks.generate import Sampler

TEMPLATES = {
    "intro": "下面的文字里有一些数字,请记住。",
    "needle": "{key} 的数字是 {value}。",
    "question": "{query} 的数字是什么?",
    "answer_prefix": "{query} 的数字是",
}


@pytest.mark.parametrize("haystack", ["noise", "needle", "sentences"])
def test_prompts_consist_of_the_templates(byte_tokenizer, haystack):
    task = Niah(haystack=haystack, keys=2, templates=TEMPLATES)
    sampler = Sampler(task, byte_tokenizer, task_name="t", length=1500, depths=[50], seed=1)
    row = sampler.sample(0)
    assert row["context"].startswith(TEMPLATES["intro"] + "\n")
    assert "special magic" not in row["prompt"]
    for needle in row["needles"]:
        assert f"{needle['key']} 的数字是 {needle['value']}。" in row["context"]
    key = row["needles"][0]["key"]
    assert row["question"] + row["answer_prefix"] == f"{key} 的数字是什么? {key} 的数字是"
    assert row["tokens"] == len(byte_tokenizer.encode(row["prompt"])) <= 1500 - 128


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"needle": "{key} 是"}, r"needle has no \{value\}"),
        ({"question": "什么?"}, r"question has no \{query\}"),
        ({"intro": "{name}"}, r"intro has the unknown \{name\}"),
        ({"answer_prefix": "{"}, "answer_prefix"),
    ],
)
def test_wrong_placeholders_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Niah(templates=TEMPLATES | wrong)


FRUITS = ["苹果", "香蕉", "葡萄", "西瓜", "草莓", "क्या", "تفاحة", "яблоко"]


@pytest.mark.parametrize("haystack", ["noise", "sentences"])
def test_keys_and_values_are_words_of_any_script(byte_tokenizer, haystack):
    templates = TEMPLATES | {"key_separator": "、"}
    task = Niah(
        haystack=haystack,
        keys=3,
        queries=2,
        value_type="words",
        key_words=FRUITS,
        templates=templates,
    )
    sampler = Sampler(task, byte_tokenizer, task_name="t", length=1500, depths=[50], seed=1)
    row = sampler.sample(0)
    keys = [needle["key"] for needle in row["needles"]]
    values = [needle["value"] for needle in row["needles"]]
    assert len({*keys, *values}) == 6
    assert {*keys, *values} < set(FRUITS)
    assert row["question"] == f"{keys[0]}、{keys[1]} 的数字是什么?"
    assert row["outputs"] == values[:2]
    assert row["value_type"] == "text"
    assert row["tokens"] == len(byte_tokenizer.encode(row["prompt"]))


def test_too_few_words_or_words_within_words_are_refused(byte_tokenizer):
    with pytest.raises(ValidationError, match="'青苹果' contains '苹果', another word; remove one"):
        Niah(key_words=["青苹果", "苹果"])
    with pytest.raises(ValidationError, match="'a' contains 'a', another word"):
        Niah(key_words=["a", "a"])
    task = Niah(haystack="noise", keys=4, value_type="words", key_words=FRUITS[:5])
    with pytest.raises(
        ValueError, match=r"only 5 different words, too few .* write more key_words"
    ):
        Sampler(task, byte_tokenizer, task_name="t", length=1500, depths=[50], seed=1).sample(0)
