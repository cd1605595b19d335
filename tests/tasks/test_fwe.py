"""Frequent words extraction, compared with RULER's published text."""

import math
import re
from collections import Counter
from random import Random

import pytest
from support.toy_tokenizers import ADDITIVE, FRAMES

from needlework.config.tasks.words import FrequentWords
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks import fwe
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.prompts.depth_sampler import DepthSampler
from needlework.tasks.prompts.token_counter import TokenCounter

pytestmark = pytest.mark.slow

PUBLISHED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most"
    " frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three"
    " most frequently appeared words in the above coded text?"
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
ZETA = {2.0: math.pi**2 / 6, 4.0: math.pi**4 / 90}
TASKS = [FrequentWords(), FrequentWords(alpha=4, letters=9), FrequentWords(vocabulary=6)]
NAMES = ["ruler", "steep", "six words"]


def sampler(task, tokenizer, *, length=2048):
    return Sampler(task, tokenizer, task_name="t", length=length, depths=[50.0], seed=3)


def make(task, tokenizer, *, count=6, **settings):
    return make_samples(sampler(task, tokenizer, **settings), count)


def make_builder(task, counter, length, index=0):
    builder_of = fwe.prepare(task, counter, TaskContext(length, ("a test",)))
    return builder_of(SampleContext(Random(index), index, DepthSampler([50.0], "a test")))


def coded(prompt):
    return prompt.split("appeared coded words. ")[1].split("\n")[0].split(" ")


def zipf(n, alpha, vocabulary):
    """The nonzero counts of the ranks, as RULER computes them."""
    counts = [int(n * k**-alpha / ZETA[alpha]) for k in range(1, vocabulary + 1)]
    return [count for count in counts if count]


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
@pytest.mark.parametrize("length", [3000, 5000])
def test_text_matches_the_published_one(tokenizer, task, length):
    for row in make(task, tokenizer, length=length).iter_rows(named=True):
        words = coded(row["prompt"])
        assert row["prompt"] == PUBLISHED.format(context=" ".join(words))
        ranked = Counter(words).most_common()
        assert ranked[0][0] == "..."
        assert [word for word, _ in ranked[1:4]] == row["outputs"]
        assert all(re.fullmatch(rf"[a-z]{{{task.letters}}}", word) for word, _ in ranked[1:])
        counts, vocabulary = [count for _, count in ranked], task.vocabulary or length // 50
        assert counts[1] > counts[2] > counts[3] > [*counts, 0][4]
        # The count of the first rank determines n up to rounding.
        scale = ZETA[task.alpha]
        texts = range(int(counts[0] * scale), int((counts[0] + 1) * scale) + 2)
        assert counts in [zipf(n, task.alpha, vocabulary) for n in texts]


@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0, 3.0, 5.0])
def test_ranks_differ_from_the_minimum_length_on(alpha):
    law = fwe.Zipf(alpha)
    for n in range(law.min_words, law.min_words + 3000):
        counts = law.counts(n, 5)
        assert counts[1] > counts[2] > counts[3] > counts[4]
    ambiguous = [n for n in range(law.min_words) if len(set(law.counts(n, 5)[1:])) < 4]
    assert max(ambiguous) > law.min_words / 3


@pytest.mark.parametrize("alpha", [2.0, 4.0])
def test_counts_follow_zipfs_law(alpha):
    for n in (80, 1234, 99_999):
        counts = fwe.Zipf(alpha).counts(n, 40).tolist()
        assert [count for count in counts if count] == zipf(n, alpha, 40)


def test_samples_differ_in_words_and_order(byte_tokenizer):
    table = make(FrequentWords(), byte_tokenizer, count=12)
    assert len({word for outputs in table["outputs"] for word in outputs}) == 36
    dots = {
        tuple(i for i, word in enumerate(coded(prompt)[:60]) if word == "...")
        for prompt in table["prompt"]
    }
    assert len(dots) == 12


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_summed_counts_match_the_tokenizer(name, task):
    tokenizer = ADDITIVE[name]()
    counters = [TokenCounter(tokenizer, frame) for frame in FRAMES]
    assert all(counter.additive for counter in counters)
    last_words = set()
    for index, length in enumerate(range(2500, 5500, 300)):
        counter = counters[index % 2]
        prompt = make_builder(task, counter, length, index).build(length)
        text = counter.chat_frame.text(prompt)
        encoding = prompt_tokenizer(tokenizer).encode(text)
        assert prompt.tokens == len(encoding)
        assert 0.99 * length <= prompt.tokens <= length
        last_words.add(prompt.context.endswith("...\n"))
        for needle in prompt.needles:
            character = len(counter.chat_frame.head) + needle.character
            assert text[character - 1] == " "
            assert re.match(rf"{needle.key}\s", text[character:])
            assert needle.token == counter.token_at(encoding, character)
    assert task.alpha > 2 or last_words == {True, False}


def test_positions_match_the_tokenizer(tokenizer):
    for row in make(FrequentWords(), tokenizer).iter_rows(named=True):
        encoding = prompt_tokenizer(tokenizer).encode(row["prompt"])
        assert row["tokens"] == len(encoding)
        assert [needle["key"] for needle in row["needles"]] == row["outputs"]
        for needle in row["needles"]:
            assert needle["value"] == needle["key"]
            start, end = encoding.offsets[needle["token_position"]]
            places = [match.start() for match in re.finditer(needle["key"], row["prompt"])]
            assert any(start <= place < end for place in places)


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_prompts_fill_the_length(task, tokenizer):
    table = make(task, tokenizer, length=4096, count=12)
    fill = (table["tokens"] + task.max_new_tokens) / 4096
    assert fill.max() <= 1
    assert fill.mean() >= 0.99
    assert fill.min() >= 0.97


def test_no_longer_text_fits(byte_tokenizer):
    builder = make_builder(FrequentWords(), TokenCounter(byte_tokenizer), 2000)
    sizes = {builder.build(tokens).tokens for tokens in range(1000, 1400)}
    for tokens in range(1000, 1400):
        assert builder.build(tokens).tokens == max(size for size in sizes if size <= tokens)


def test_building_again_gives_the_same_prompt(byte_tokenizer):
    counter = TokenCounter(byte_tokenizer)
    builder = make_builder(FrequentWords(), counter, 3000)
    first = builder.build(1000)
    builder.build(2900)
    assert builder.build(1000) == first
    assert make_builder(FrequentWords(), counter, 3000).build(1000) == first


def test_slots_of_a_thousand_samples_are_even():
    counter = TokenCounter(ADDITIVE["tiny"]())
    builder_of = fwe.prepare(FrequentWords(), counter, TaskContext(1500, ("a test",)))
    depth_sampler, slots, places = DepthSampler([50.0], "a test"), [[], [], []], [[], [], []]
    for index in range(1000):
        prompt = builder_of(SampleContext(Random(index), index, depth_sampler)).build(1450)
        line = prompt.context.index("coded words. ") + len("coded words. ")
        items = prompt.context.count(" ", line) + 1
        indices = [prompt.context.count(" ", line, n.character) for n in prompt.needles]
        assert len(set(indices)) == 3
        for j, needle in enumerate(prompt.needles):
            slots[j].append(int(needle.depth_percent // 5))
            places[j].append(indices[j] / items)
            assert abs(100 * places[j][-1] - needle.depth_percent) < 100 * 4 / items
    for j in range(3):
        assert all(abs(slots[j].count(part) - 50) <= 2 for part in range(20))
        parts = [int(20 * place) for place in places[j]]
        assert all(abs(parts.count(part) - 50) <= 5 for part in range(20))


def test_a_length_that_is_too_small_names_the_smallest(either_tokenizer, probed_samples):
    for task in TASKS:
        with pytest.raises(
            ValueError, match=r"^lengths: 60 is too small for task t; write"
        ) as error:
            make(task, either_tokenizer, length=60)
        smallest = int(re.search(r"write (\d+) or more$", str(error.value))[1])
        make(task, either_tokenizer, length=smallest)
        with pytest.raises(ValueError, match="too small"):
            make(task, either_tokenizer, length=smallest - 1, count=probed_samples)


def test_a_vocabulary_beyond_the_possible_words_is_rejected(byte_tokenizer):
    with pytest.raises(
        ValueError, match="only 17576 different words have 3 letters; write 17576 or less"
    ):
        make(FrequentWords(letters=3, vocabulary=20_000), byte_tokenizer)
    make(FrequentWords(letters=3, vocabulary=17_576), byte_tokenizer)
