"""Task ruler_jsonl: existing samples are used unchanged."""

import json

import pytest

from needlework.config.tasks.ruler_jsonl import RulerJsonl
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.generate import Sampler, make_samples


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def rows(count=3, **more):
    return [
        {"index": 900 * i, "input": f"Text {i}. Which number?", "outputs": [str(i)], **more}
        for i in range(count)
    ]


def make(path, tokenizer, *, count=3, length=512, **settings):
    task = RulerJsonl(path=str(path), **settings)
    sampler = Sampler(task, tokenizer, task_name="t", length=length, depths=[50.0], seed=1)
    return make_samples(sampler, count)


def test_rows_are_used_unchanged(tokenizer, tmp_path):
    write(tmp_path / "512.jsonl", rows(answer_prefix=" The number is"))
    table = make(tmp_path / "{length}.jsonl", tokenizer, match="part", max_new_tokens=9)
    assert table["prompt"][1] == "Text 1. Which number? The number is"
    assert table["outputs"].to_list() == [["0"], ["1"], ["2"]]
    assert table["tokens"].to_list() == [
        len(prompt_tokenizer(tokenizer).encode(p)) for p in table["prompt"]
    ]
    assert table["max_new_tokens"].to_list() == [9] * 3
    assert table["messages"][0].to_list() == [
        {"role": "user", "content": "Text 0. Which number?"},
        {"role": "assistant", "content": "The number is"},
    ]
    assert table["needles"].to_list() == [[], [], []]
    assert RulerJsonl(path="a", match="part").metric == "part"


def test_rows_of_other_lengths_are_skipped(byte_tokenizer, tmp_path):
    write(
        tmp_path / "all.jsonl",
        [row | {"max_length": 512 + i % 2} for i, row in enumerate(rows(6, gen_prefix="It is"))],
    )
    table = make(tmp_path / "all.jsonl", byte_tokenizer, length=513)
    assert table["outputs"].to_list() == [["1"], ["3"], ["5"]]
    assert table["prompt"][0].endswith("Which number? It is")


def test_more_samples_than_rows_are_rejected(byte_tokenizer, tmp_path):
    write(tmp_path / "a.jsonl", rows())
    with pytest.raises(ValueError, match=r"a\.jsonl: 3 rows of length 512; write samples: 3 or le"):
        make(tmp_path / "a.jsonl", byte_tokenizer, count=4)


def test_a_row_too_long_for_the_length_is_rejected(byte_tokenizer, tmp_path):
    write(tmp_path / "a.jsonl", rows())
    with pytest.raises(
        ValueError, match=r"a\.jsonl: row 1 has \d+ tokens, but only 2 fit; write a greater"
    ):
        make(tmp_path / "a.jsonl", byte_tokenizer, length=130)


def test_outputs_of_another_type_are_rejected(byte_tokenizer, tmp_path):
    write(tmp_path / "a.jsonl", rows(outputs=["cat"]))
    assert len(make(tmp_path / "a.jsonl", byte_tokenizer)) == 3
    with pytest.raises(ValueError, match=r"row 1 has the output 'cat', which contains no numbers"):
        make(tmp_path / "a.jsonl", byte_tokenizer, value_type="numbers")


def test_a_file_without_rows_of_the_length_is_rejected(byte_tokenizer, tmp_path):
    write(tmp_path / "a.jsonl", rows(max_length=9))
    with pytest.raises(ValueError, match=r"a\.jsonl: no rows of length 512$"):
        make(tmp_path / "a.jsonl", byte_tokenizer)
