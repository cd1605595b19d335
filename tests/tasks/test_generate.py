import os
import subprocess
import sys

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needlework.config.tasks import NiahMultikey1, NiahSingle1, Passkey
from needlework.tasks.filler import PARAGRAPH, Filler
from needlework.tasks.generate import SAMPLES, samples

TASKS = [Passkey(), NiahSingle1(), NiahMultikey1()]
STARTS = {
    "passkey": "The pass key is {value}. Remember",
    "niah": "One of the special magic numbers for {key} is: {value}.",
}
DEPTHS = [0.0, 10.0, 25.0, 50.0, 90.0, 100.0]


def make(task, tokenizer, length=700, count=6, depths=DEPTHS, seed=1, name="a_task"):
    return samples(
        task, tokenizer, task_name=name, length=length, count=count, depths=depths, seed=seed
    )


@pytest.fixture(params=TASKS, ids=lambda task: task.type)
def task(request):
    return request.param


def test_rows_hold_together(task, tokenizer):
    table = make(task, tokenizer)
    assert dict(table.schema) == SAMPLES
    assert table["sample"].to_list() == list(range(6))
    for row in table.iter_rows(named=True):
        assert row["prompt"] == row["context"] + row["question"] + row["answer_prefix"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"] + " " + row["messages"][1]["content"] == row["prompt"]
        assert row["tokens"] == len(tokenizer.encode(row["prompt"]).ids)
        assert row["outputs"] == [row["needles"][0]["value"]]
        assert row["max_new_tokens"] == task.max_new_tokens


@settings(max_examples=12, deadline=None)
@given(length=st.integers(450, 1500), index=st.integers(0, 5))
def test_prompts_are_full_and_never_over(byte_tokenizer, length, index):
    for task in TASKS:
        row = make(task, byte_tokenizer, length, count=index + 1).row(index, named=True)
        gap = length - task.max_new_tokens - row["tokens"]
        # A cut line leaves at most the line break; sentences leave less than one of them.
        longest = 1 if task != NiahMultikey1() else 30
        assert 0 <= gap <= longest


def test_other_tokenizers_fill_too(task, tokenizer):
    for length in (600, 601, 1500):
        gaps = length - task.max_new_tokens - make(task, tokenizer, length)["tokens"]
        assert gaps.min() >= 0
        assert gaps.max() <= (30 if task == NiahMultikey1() else 4)


def test_sample_is_the_same_whatever_else_is_asked_for(task, tokenizer):
    alone = make(task, tokenizer, count=3)
    make(task, tokenizer, length=900, count=2)
    among = make(task, tokenizer, count=8)
    assert alone.equals(among.head(3))


def test_sample_is_the_same_in_another_process(byte_tokenizer, tmp_path):
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    script = (
        "import sys\n"
        "from needlework.config.tasks import NiahMultikey1\n"
        "from needlework.tasks.generate import samples\n"
        "from needlework.tasks.tokenizer import open_tokenizer\n"
        "table = samples(NiahMultikey1(), open_tokenizer(sys.argv[1]), task_name='a_task',"
        " length=700, count=4, depths=[0.0, 10.0, 25.0, 50.0, 90.0, 100.0], seed=1)\n"
        "assert 'torch' not in sys.modules\n"
        "table.write_parquet(sys.argv[1] + '/table.parquet')\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    assert pl.read_parquet(tmp_path / "table.parquet").equals(
        make(NiahMultikey1(), byte_tokenizer, count=4)
    )


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"length": 701}, {"task": Passkey(digits=5, max_new_tokens=11)}]
)
def test_streams_differ_by_seed_length_and_parameters(byte_tokenizer, change):
    one = make(Passkey(), byte_tokenizer)
    other = make(**{"task": Passkey(), "tokenizer": byte_tokenizer, **change})
    assert not set(one["seed"]) & set(other["seed"])
    assert one["outputs"].to_list() != other["outputs"].to_list()


def test_depths_go_round(task, byte_tokenizer):
    table = make(task, byte_tokenizer, count=15)
    asked = [needles[0]["depth_percent"] for needles in table["needles"]]
    assert asked == [DEPTHS[i % len(DEPTHS)] for i in range(15)]


def test_needles_stand_at_their_depth(task, tokenizer):
    table = make(task, tokenizer, length=3000, depths=[5 * i for i in range(21)], count=21)
    unit = Filler(tokenizer, PARAGRAPH, "\n").period_tokens
    for row in table.iter_rows(named=True):
        encoding = tokenizer.encode(row["prompt"])
        needles = row["needles"]
        for needle in needles:
            start, end = encoding.offsets[needle["token_position"]]
            line = STARTS[task.module].format(**needle)
            assert row["prompt"].count(line) == 1
            assert start <= row["prompt"].index(line) < end
        first = encoding.char_to_token(row["context"].index("\n") + 1)
        whole = encoding.char_to_token(len(row["context"]))
        own = (len(needles) + 1) * 40
        expected = first + needles[0]["depth_percent"] / 100 * (whole - first)
        assert abs(needles[0]["token_position"] - expected) <= unit + own


def test_length_too_small_names_the_smallest(task, tokenizer):
    with pytest.raises(ValueError, match=r"^lengths: 40 is too small for task a_task; set \d+ or"):
        make(task, tokenizer, length=40)
    try:
        make(task, tokenizer, length=40)
    except ValueError as error:
        smallest = int(str(error).split("set ")[1].split()[0])
    make(task, tokenizer, length=smallest)
    with pytest.raises(ValueError, match="too small"):
        make(task, tokenizer, length=smallest - 1)


def test_settings_that_cut_or_pad_do_not_count(task, byte_tokenizer):
    cutting = type(byte_tokenizer).from_str(byte_tokenizer.to_str())
    cutting.enable_truncation(64)
    cutting.enable_padding(length=5000)
    assert make(task, cutting).equals(make(task, byte_tokenizer))
    assert cutting.truncation is not None
