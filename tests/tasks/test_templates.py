"""Templates of the user's own in every task with a prompt."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError
from support.paths import DATA

from needlework.config.tasks.base import Task
from needlework.config.tasks.registry import AnyTask
from needlework.tasks.generate import Sampler

TASKS = {
    "passkey": {
        "intro": "文章の中に鍵があります。",
        "needle": "鍵は{key}です。",
        "question": "鍵は何ですか。",
        "answer_prefix": "鍵は",
    },
    "vt": {
        "intro": "Запомните цепочки присваиваний.",
        "question": "Какие переменные равны {value}?",
        "answer_prefix": "Ответ: {count} переменных равны {value}:",
    },
    "cwe": {
        "intro": "नीचे शब्दों की सूची है।",
        "question": "सबसे अधिक आने वाले {count} शब्द कौन से हैं?",
        "answer_prefix": "उत्तर:",
    },
    "fwe": {
        "intro": "اقرأ النص المشفر.",
        "question": "ما هي الكلمات الثلاث الأكثر تكرارا؟",
        "answer_prefix": "الجواب:",
    },
    "qa": {
        "intro": "根据文件回答问题。",
        "title": "文件 {number}:",
        "question": "问题: {query}",
        "answer_prefix": "答案是",
    },
}
SETTINGS = {"qa": {"path": str(DATA / "squad-small.json")}}
LENGTH = 8_000
"""Bytes: each is a token of the tokenizer."""


def make(kind: str, **changed: str) -> Task:
    templates = {**TASKS[kind], **changed}
    task = {"type": kind, "templates": templates, **SETTINGS.get(kind, {})}
    return TypeAdapter(AnyTask).validate_json(json.dumps(task))


@pytest.mark.parametrize("kind", TASKS)
def test_prompts_consist_of_the_templates(byte_tokenizer, kind):
    task, text = make(kind), TASKS[kind]
    sampler = Sampler(
        task, byte_tokenizer, task_name="t", length=LENGTH, depths=[0.0, 50.0], seed=1
    )
    row = sampler.sample(1)
    assert text["intro"] in row["context"]
    assert row["question"].startswith(text["question"].partition("{")[0])
    assert row["answer_prefix"].strip().startswith(text["answer_prefix"].partition("{")[0])
    assert "{" not in row["prompt"]
    english = ["important info", "Memorize", "Question:", "Answer", "given documents"]
    assert not [words for words in english if words in row["prompt"]]
    assert row["tokens"] == len(byte_tokenizer.encode(row["prompt"]))
    assert row["tokens"] + row["max_new_tokens"] <= LENGTH
    for needle in row["needles"]:
        start = byte_tokenizer.encode(row["prompt"]).offsets[needle["token_position"]][0]
        expected = {"passkey": "鍵は", "vt": "VAR ", "qa": "文件 "}.get(kind, needle["key"])
        assert row["prompt"][start:].lstrip().startswith(expected)


def test_the_worked_example_uses_the_templates(byte_tokenizer):
    task = TypeAdapter(AnyTask).validate_python(
        {
            "type": "passkey",
            "templates": TASKS["passkey"],
            "shots": 2,
            "filler": "空は青い。草は緑。",
        }
    )
    sampler = Sampler(task, byte_tokenizer, task_name="t", length=3000, depths=[60.0], seed=1)
    row = sampler.sample(0)
    assert row["context"].count(TASKS["passkey"]["intro"]) == 3
    assert row["context"].count("鍵は何ですか。鍵は ") == 2
    assert "空は青い。草は緑。空は青い。" in row["context"]
    assert row["answer_prefix"] == "鍵は"
    before = row["context"].split("\n鍵は")[-2].rsplit("\n", 1)[-1]
    assert before.endswith("。")
    assert 2900 < row["tokens"] + row["max_new_tokens"] <= 3000


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("passkey", {"needle": "The key."}, r"needle has no \{key\}; write it where it belongs"),
        ("passkey", {"intro": "{key}"}, r"intro has the unknown \{key\}; it may have: none"),
        ("vt", {"question": "{count}?"}, r"question has no \{value\}"),
        ("vt", {"answer_prefix": "{n}"}, r"unknown \{n\}; it may have: \{count\}, \{value\}"),
        ("cwe", {"question": "{number}"}, r"question has the unknown \{number\}"),
        ("cwe", {"question": "{count:d}"}, r"question formats \{count\}; write \{count\}, without"),
        ("cwe", {"question": "{count!r}"}, r"question formats \{count\}"),
        ("fwe", {"question": "{count}"}, r"question has the unknown \{count\}"),
        ("fwe", {"question": "a } b"}, r"question: Single '}' encountered"),
        ("qa", {"title": "Document"}, r"title has no \{number\}"),
        ("qa", {"question": "{}"}, r"question has the unknown \{\}"),
        ("qa", {"question": "{query.text}"}, r"question has the unknown \{query\.text\}"),
        ("fwe", {"question": " "}, "is blank"),
    ],
)
def test_placeholders_are_checked(kind, changed, message):
    with pytest.raises(ValidationError, match=message):
        make(kind, **changed)


def test_doubled_braces_are_braces(byte_tokenizer):
    task = make("fwe", intro="Count {{words}}.")
    sampler = Sampler(task, byte_tokenizer, task_name="t", length=4000, depths=[0.0], seed=1)
    assert sampler.sample(0)["context"].startswith("Count {words}. ")
