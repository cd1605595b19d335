"""Variable tracking, compared with RULER's published text."""

import re
from random import Random

import pytest
from support.toy_tokenizers import ADDITIVE, FRAMES

from needlework.config.tasks.vt import VariableTracking
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks import vt
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.prompts.depth_sampler import DepthSampler
from needlework.tasks.prompts.token_counter import TokenCounter

pytestmark = pytest.mark.slow

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
PUBLISHED = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v}"
    " variables are assigned the value {query}, they are: "
)
TASKS = [
    VariableTracking(),
    VariableTracking(chains=3, hops=2),
    VariableTracking(haystack="essay", chains=2),
]
DEPTHS = [0.0, 10.0, 25.0, 50.0, 90.0, 100.0]


def sampler(task, tokenizer, *, length=1024, depths=DEPTHS):
    return Sampler(task, tokenizer, task_name="t", length=length, depths=depths, seed=3)


def make(task, tokenizer, *, count=6, **settings):
    return make_samples(sampler(task, tokenizer, **settings), count)


def make_builder(task, counter, length, index=0):
    builder_of = vt.prepare(task, counter, TaskContext(length, ("a test",)))
    return builder_of(SampleContext(Random(index), index, DepthSampler(DEPTHS, "a test")))


def published(context, value, count):
    """RULER's text without the blank at its end."""
    return PUBLISHED.format(context=context, query=value, num_v=count).removesuffix(" ")


def split_example(prompt):
    """The worked example, and the prompt's own text."""
    example, own = prompt.split("\n\nMemorize")
    return example, f"Memorize{own}"


def assignments(text):
    return re.findall(r"VAR ([A-Z]+) = (VAR [A-Z]+|\d+)", text)


@pytest.mark.parametrize("length", [1024, 4096])
@pytest.mark.parametrize("hops", [1, 4])
def test_text_matches_the_published_one(tokenizer, length, hops):
    for row in make(VariableTracking(hops=hops), tokenizer, length=length).iter_rows(named=True):
        example, own = split_example(row["prompt"])
        example, answer = example.rsplit(" they are:", 1)
        for text, letters in ((f"{example} they are:", 3), (own, 5)):
            chain = assignments(text)
            assert len(chain) == hops + 1
            assert {len(name) for name, _ in chain} == {letters}
            value = chain[0][1]
            assert 10_000 <= int(value) <= 99_998
            assert [assigned for _, assigned in chain[1:]] == [
                f"VAR {name}" for name, _ in chain[:-1]
            ]
            lines = text.split("\n\n")[1].split("\n")[:-1]
            assert text == published("\n".join(lines), value, hops + 1)
            noise = [line for line in lines if not line.startswith("VAR")]
            assert len(noise) == len(lines) - hops - 1
            if letters == 3:
                assert noise == [NOISE] * len(noise)
                assert len(noise) == 1 or len(noise) % 5 == 0
                assert answer == "".join(f" {name}" for name, _ in chain)
            else:
                assert noise[:-1] == [NOISE] * (len(noise) - 1)
                assert NOISE.startswith(noise[-1])
                assert row["outputs"] == [name for name, _ in chain]


def test_assignments_are_sentences_of_running_text(byte_tokenizer):
    task = VariableTracking(haystack="essay", chains=2)
    for row in make(task, byte_tokenizer, length=2000).iter_rows(named=True):
        for text in split_example(row["prompt"]):
            (line,) = text.split("\n\n")[1].split("\n")[:-1]
            sentences = re.split(r"(?<=\.) ", line)
            assert sum(sentence.startswith("VAR ") for sentence in sentences) == 10
            assert all(re.fullmatch(r"[^.]+\.", sentence) for sentence in sentences)
        value = assignments(split_example(row["prompt"])[1])[0][1]
        assert row["needles"][0]["value"] in (value, *(v for _, v in assignments(line)))


def test_worked_example_is_shorter_in_short_prompts(byte_tokenizer):
    for length, lower, upper in ((4096, 400, 500), (1024, 400, 500), (700, 200, 350)):
        for prompt in make(VariableTracking(), byte_tokenizer, length=length)["prompt"]:
            example, _ = split_example(prompt)
            assert lower <= len(byte_tokenizer.encode(example)) <= upper


def test_worked_examples_differ_between_samples(byte_tokenizer):
    names, values = [], []
    for prompt in make(VariableTracking(), byte_tokenizer, count=40)["prompt"]:
        example, own = split_example(prompt)
        names += [name for name, _ in assignments(example)]
        both = [assignments(text)[0][1] for text in (example, own)]
        assert both[0] != both[1]
        values += both
    assert len(set(names)) > 190
    assert len(set(values)) > 75


@pytest.mark.parametrize("task", TASKS, ids=["one", "three chains", "essay"])
def test_needles_list_the_queried_chain_first(task, tokenizer):
    for row in make(task, tokenizer, length=3000).iter_rows(named=True):
        needles, chain_length = row["needles"], task.hops + 1
        assert [needle["key"] for needle in needles[:chain_length]] == row["outputs"]
        _, own = split_example(row["prompt"])
        in_text = assignments(own)
        assert sorted(in_text) == sorted((n["key"], n["value"]) for n in needles)
        depths = [needle["depth_percent"] for needle in needles]
        assert len(set(depths)) == len(depths)
        encoding = tokenizer.encode(row["prompt"])
        for first in range(0, len(needles), chain_length):
            chain = needles[first : first + chain_length]
            values = [f"VAR {needle['key']}" for needle in chain[:-1]]
            assert [needle["value"] for needle in chain[1:]] == values
            places = [in_text.index((needle["key"], needle["value"])) for needle in chain]
            assert places == sorted(places)
            for needle in chain:
                place = row["prompt"].index(f"VAR {needle['key']} =")
                start, end = encoding.offsets[needle["token_position"]]
                assert start <= place < end


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("task", TASKS, ids=["one", "three chains", "essay"])
def test_summed_counts_match_the_tokenizer(name, task):
    tokenizer = ADDITIVE[name]()
    counters = [TokenCounter(tokenizer, frame) for frame in FRAMES]
    assert all(counter.additive for counter in counters)
    tokenizer = prompt_tokenizer(tokenizer)
    for index, length in enumerate(range(1000, 4000, 300)):
        counter = counters[index % 2]
        prompt = make_builder(task, counter, length, index).build(length)
        text = counter.chat_frame.text(prompt)
        encoding = tokenizer.encode(text)
        assert prompt.tokens == len(encoding) <= length
        for needle in prompt.needles:
            character = len(counter.chat_frame.head) + needle.character
            assert text[character:].startswith(f"VAR {needle.key} = {needle.value}")
            assert needle.token == counter.token_at(encoding, character)


@pytest.mark.parametrize("task", TASKS, ids=["one", "three chains", "essay"])
def test_prompts_fill_the_length(task, tokenizer):
    table = make(task, tokenizer, length=4096, count=12)
    tokenizer = prompt_tokenizer(tokenizer)
    assert table["tokens"].to_list() == [len(tokenizer.encode(text)) for text in table["prompt"]]
    fill = (table["tokens"] + task.max_new_tokens) / 4096
    assert fill.max() <= 1
    assert fill.mean() >= 0.99
    assert fill.min() >= 0.97


def test_building_again_gives_the_same_prompt(byte_tokenizer):
    for task in TASKS:
        builder = make_builder(task, TokenCounter(byte_tokenizer), 2000)
        first = builder.build(1800)
        builder.build(900)
        assert builder.build(1800) == first


def test_a_thousand_samples_visit_every_depth_equally_often(byte_tokenizer):
    counter, depths = TokenCounter(byte_tokenizer), [5.0 * i for i in range(20)]
    builder_of = vt.prepare(VariableTracking(), counter, TaskContext(1000, ("a test",)))
    depth_sampler = DepthSampler(depths, "a test")
    drawn = []
    for index in range(1000):
        prompt = builder_of(SampleContext(Random(index), index, depth_sampler)).build(0)
        sample_depths = [needle.depth_percent for needle in prompt.needles]
        assert sample_depths == sorted(set(sample_depths))
        drawn += sample_depths
    assert {drawn.count(depth) for depth in depths} == {5 * 1000 // 20}


def test_other_chains_interleave_with_the_queried_one(byte_tokenizer):
    ranks = set()
    for row in make(VariableTracking(chains=2, hops=3), byte_tokenizer, count=40).iter_rows(
        named=True
    ):
        _, own = split_example(row["prompt"])
        names = [name for name, _ in assignments(own)]
        ranks.add(tuple(name in row["outputs"] for name in names))
    assert len(ranks) > 10


def test_a_length_that_is_too_small_names_the_smallest(either_tokenizer, probed_samples):
    for task in TASKS[:2]:
        with pytest.raises(
            ValueError, match=r"^lengths: 50 is too small for task t; write"
        ) as error:
            make(task, either_tokenizer, length=50)
        smallest = int(re.search(r"write (\d+) or more$", str(error.value))[1])
        assert smallest < 1000
        make(task, either_tokenizer, length=smallest)
        with pytest.raises(ValueError, match="too small"):
            make(task, either_tokenizer, length=smallest - 1, count=probed_samples)
