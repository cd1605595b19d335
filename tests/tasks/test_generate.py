"""Sampler: rows are consistent, full, reproducible, and spread over depths."""

import os
import subprocess
import sys

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import DATA, TINY

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
from needlework.config.tasks.qa import Qa1
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks import generate
from needlework.tasks.generate import (
    SAMPLE_SCHEMA,
    Sampler,
    make_samples,
    write_samples,
)
from needlework.tasks.prompts.token_counter import TokenCounter
from needlework.tasks.prompts.tokenizer import open_tokenizer

pytestmark = pytest.mark.slow

RULER = [
    NiahSingle1(),
    NiahSingle2(),
    NiahSingle3(),
    NiahMultikey1(),
    NiahMultikey2(),
    NiahMultikey3(),
    NiahMultivalue(),
    NiahMultiquery(),
]
FREE = Needles(
    needles=[
        FreeNeedle(text="The red door opens with a song.", answer="a song"),
        FreeNeedle(text="The green door opens with a whistle.", answer="a whistle"),
    ],
    question="What opens the red and the green door?",
)
TASKS = [Passkey(), Passkey(shots=2, filler="Rain falls. Snow too."), *RULER, FREE]
DEPTHS = [0.0, 10.0, 25.0, 50.0, 90.0, 100.0]


def sampler(task, tokenizer, length=1200, depths=DEPTHS, seed=1, **settings):
    return Sampler(
        task, tokenizer, task_name="a_task", length=length, depths=depths, seed=seed, **settings
    )


def make(task, tokenizer, *, count=6, **settings):
    return make_samples(sampler(task, tokenizer, **settings), count)


@pytest.fixture(params=TASKS, ids=lambda task: f"{task.type}{getattr(task, 'shots', '')}")
def task(request):
    return request.param


def needle_offset(row, needle):
    """The offset in the prompt at which a needle's line or sentence starts."""
    if needle["key"] == "pass key":
        return row["prompt"].index(f"The pass key is {needle['value']}. Remember")
    at = row["prompt"].index(needle["value"])
    start = max(row["prompt"].rfind("One of", 0, at), row["prompt"].rfind("The ", 0, at))
    return start


def test_rows_are_consistent(task, tokenizer):
    table = make(task, tokenizer)
    assert dict(table.schema) == SAMPLE_SCHEMA
    assert table["sample"].to_list() == list(range(6))
    for row in table.iter_rows(named=True):
        assert row["prompt"] == row["context"] + row["question"] + row["answer_prefix"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"] + " " + row["messages"][1]["content"] == row["prompt"]
        assert row["value_type"] == task.answer_type
        assert row["max_new_tokens"] == task.max_new_tokens
        queried = [needle["value"] for needle in row["needles"][: len(row["outputs"])]]
        assert queried == row["outputs"]


@pytest.mark.parametrize("length", [1100, 4096])
def test_counts_and_positions_match_the_tokenizer(task, tokenizer, length):
    for row in make(task, tokenizer, length=length, count=3).iter_rows(named=True):
        encoding = prompt_tokenizer(tokenizer).encode(row["prompt"])
        assert row["tokens"] == len(encoding)
        for needle in row["needles"]:
            start, end = encoding.offsets[needle["token_position"]]
            assert start <= needle_offset(row, needle) < end


def test_counts_match_the_shipped_tokenizer(task):
    tokenizer = open_tokenizer(TINY)
    assert TokenCounter(tokenizer).additive
    for row in make(task, tokenizer, count=4).iter_rows(named=True):
        assert row["tokens"] == len(prompt_tokenizer(tokenizer).encode(row["prompt"]))


@settings(max_examples=15, deadline=None)
@given(length=st.integers(900, 2500))
def test_prompts_are_full_and_never_too_long(byte_tokenizer, length):
    for task in (Passkey(), NiahSingle1(), NiahMultikey1(), NiahMultikey3()):
        for row in make(task, byte_tokenizer, length=length, count=2).iter_rows(named=True):
            gap = length - task.max_new_tokens - row["tokens"]
            assert 0 <= gap <= {"passkey": 1, "niah_single_1": 1}.get(task.type, 30)


def test_prompts_fill_the_length(task, either_tokenizer):
    table = make(task, either_tokenizer, length=4096, count=6)
    fill = (table["tokens"] + task.max_new_tokens) / 4096
    assert fill.max() <= 1
    assert fill.mean() >= 0.99
    assert fill.min() >= 0.97


def test_samples_do_not_depend_on_order_or_number(task, byte_tokenizer):
    many = make(task, byte_tokenizer, count=12)
    make(task, byte_tokenizer, length=1500, count=2)
    assert make(task, byte_tokenizer, count=3).equals(many.head(3))
    backwards = sampler(task, byte_tokenizer)
    rows = [backwards.sample(index) for index in (11, 4, 7, 0)]
    assert pl.DataFrame(rows, SAMPLE_SCHEMA, orient="row").equals(many[[11, 4, 7, 0]])


def test_samples_are_the_same_in_another_process(byte_tokenizer, tmp_path):
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    script = (
        "import sys\n"
        "from needlework.config.tasks.niah import NiahMultikey3\n"
        "from needlework.tasks.generate import Sampler, write_samples\n"
        "from needlework.tasks.prompts.tokenizer import open_tokenizer\n"
        "sampler = Sampler(NiahMultikey3(), open_tokenizer(sys.argv[1]), task_name='a_task',"
        " length=1200, depths=[0.0, 10.0, 25.0, 50.0, 90.0, 100.0], seed=1)\n"
        "write_samples(sampler, 4, sys.argv[1] + '/table.parquet')\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    assert pl.read_parquet(tmp_path / "table.parquet").equals(
        make(NiahMultikey3(), byte_tokenizer, count=4)
    )


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"length": 701}, {"task": Passkey(digits=5, max_new_tokens=11)}]
)
def test_random_streams_depend_on_seed_length_and_parameters(byte_tokenizer, change):
    table = make(Passkey(), byte_tokenizer, length=700)
    other = make(**{"task": Passkey(), "tokenizer": byte_tokenizer, "length": 700, **change})
    assert not set(table["seed"]) & set(other["seed"])
    assert table["outputs"].to_list() != other["outputs"].to_list()


def test_needles_are_at_their_depth(task, byte_tokenizer):
    depths = [5.0 * i for i in range(21)]
    table = make(task, byte_tokenizer, length=6000, depths=depths, count=21)
    for row in table.iter_rows(named=True):
        encoding = byte_tokenizer.encode(row["prompt"])
        shots = row["context"].rfind("\n\n") + 1
        first = encoding.char_to_token(row["context"].index("\n", shots + 1) + 1)
        last = encoding.char_to_token(len(row["context"]))
        for needle in row["needles"]:
            expected = first + needle["depth_percent"] / 100 * (last - first)
            assert abs(needle["token_position"] - expected) <= 60 * (len(row["needles"]) + 1)


def test_samples_visit_every_depth_equally_often(task, byte_tokenizer):
    samples = sampler(task, byte_tokenizer)
    rows = [samples.sample(index) for index in range(40 * len(DEPTHS))]
    for j in range(len(rows[0]["outputs"])):
        depths = [row["needles"][j]["depth_percent"] for row in rows]
        assert {depths.count(depth) for depth in DEPTHS} == {len(rows) // len(DEPTHS)}
    for row in rows:
        depths = [needle["depth_percent"] for needle in row["needles"]]
        assert len(set(depths)) == len(depths)


def test_uniform_depths_are_even(byte_tokenizer):
    samples = sampler(NiahMultivalue(depths="uniform"), byte_tokenizer, length=700)
    rows = [samples.sample(index) for index in range(1000)]
    for j in range(4):
        twentieths = [int(row["needles"][j]["depth_percent"] // 5) for row in rows]
        assert all(abs(twentieths.count(part) - 50) <= 3 for part in range(20))


def test_depths_of_the_task_override_the_experiments(byte_tokenizer):
    table = make(Passkey(depths=[30.0]), byte_tokenizer)
    assert {needles[0]["depth_percent"] for needles in table["needles"]} == {30.0}


def test_a_length_that_is_too_small_names_the_smallest(task, either_tokenizer, probed_samples):
    with pytest.raises(
        ValueError, match=r"^lengths: 50 is too small for task a_task; write \d+ or more$"
    ) as error:
        make(task, either_tokenizer, length=50)
    smallest = int(str(error.value).split("write ")[1].split()[0])
    make(task, either_tokenizer, length=smallest)
    with pytest.raises(ValueError, match="too small"):
        make(task, either_tokenizer, length=smallest - 1, count=probed_samples)


def test_lengths_can_be_characters(task, either_tokenizer):
    for row in make(task, either_tokenizer, length=9000, length_unit="characters").iter_rows(
        named=True
    ):
        assert 8900 <= len(row["prompt"]) <= 9000
        encoding = prompt_tokenizer(either_tokenizer).encode(row["prompt"])
        assert row["tokens"] == len(encoding)
        start, end = encoding.offsets[row["needles"][0]["token_position"]]
        assert start <= needle_offset(row, row["needles"][0]) < end


def test_truncation_and_padding_of_the_tokenizer_have_no_effect(task, byte_tokenizer):
    truncating = type(byte_tokenizer).from_str(byte_tokenizer.to_str())
    truncating.enable_truncation(64)
    truncating.enable_padding(length=5000)
    assert make(task, truncating).equals(make(task, byte_tokenizer))
    assert truncating.truncation is not None


def test_haystack_text_starts_anywhere_and_wraps_around(byte_tokenizer):
    lines = [f"Sentence number {i} of a text of mine, no more." for i in range(40)]
    counts = [len(byte_tokenizer.encode(f" {line}", add_special_tokens=False)) for line in lines]
    table = pl.DataFrame({"sentence": lines, "tokens": counts})
    task = Niah(haystack="mine", keys=2)
    in_tokens = make(task, byte_tokenizer, haystack=table, length=3000)
    in_characters = make(
        task, byte_tokenizer, haystack=table, length=3000, length_unit="characters"
    )
    assert all(2900 < len(prompt) <= 3000 for prompt in in_characters["prompt"])
    starts = set()
    for row in in_tokens.iter_rows(named=True):
        assert row["tokens"] == len(byte_tokenizer.encode(row["prompt"]))
        text = row["context"].split("\n")[1]
        numbers = [int(part.split()[0]) for part in text.split("Sentence number ")[1:]]
        assert numbers == [(numbers[0] + i) % 40 for i in range(len(numbers))]
        assert len(numbers) > 80
        starts.add(numbers[0])
    assert len(starts) > 2


def test_a_long_table_is_written_in_row_groups(byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "_BATCH_CHARACTERS", 5000)
    write_samples(sampler(Passkey(), byte_tokenizer), 9, tmp_path / "table.parquet")
    assert pq.ParquetFile(tmp_path / "table.parquet").num_row_groups > 1
    assert pl.read_parquet(tmp_path / "table.parquet").equals(
        make(Passkey(), byte_tokenizer, count=9)
    )


def test_few_samples_cover_many_depths(byte_tokenizer):
    depths = [2.5 * i for i in range(41)]
    for count in (5, 10, 22):
        needles = make(Passkey(), byte_tokenizer, depths=depths, count=count)["needles"]
        drawn = sorted(row[0]["depth_percent"] for row in needles)
        gaps = [b - a for a, b in zip([0, *drawn], [*drawn, 100], strict=True)]
        assert max(gaps) <= 250 / count


def test_samples_do_not_depend_on_the_path_of_a_file(byte_tokenizer, tmp_path):
    source = DATA / "squad-small.json"
    (tmp_path / "copy.json").write_bytes(source.read_bytes())
    original, copy = (Qa1(path=str(path)) for path in (source, tmp_path / "copy.json"))
    assert make(original, byte_tokenizer).equals(make(copy, byte_tokenizer))


def test_more_values_than_exist_are_rejected(byte_tokenizer):
    with pytest.raises(
        ValueError, match=r"^tasks\.a_task: there are only 9 different numbers of 1 digits, too"
    ):
        make(Niah(keys=10, digits=1), byte_tokenizer)
    assert len(make(Niah(keys=8, digits=1), byte_tokenizer)) == 6
    words = NiahMultikey2(key_words="held_out")
    with pytest.raises(ValueError, match=r"different words, too few for the keys and values"):
        make(words, byte_tokenizer, length=4_000_000, count=1)
