"""Common words extraction, compared with RULER's published text."""

import re
from collections import Counter
from random import Random

import pytest
from support.toy_tokenizers import ADDITIVE, FRAMES, TINY

from needlework.config.tasks.words import CommonWords
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks import cwe
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.generate import Sampler, make_samples
from needlework.tasks.haystacks.words import all_words
from needlework.tasks.prompts.budget import ContentExhausted
from needlework.tasks.prompts.depth_sampler import DepthSampler
from needlework.tasks.prompts.token_counter import TokenCounter
from needlework.tasks.prompts.tokenizer import open_tokenizer

pytestmark = pytest.mark.slow

PUBLISHED = (
    "Below is a numbered list of words. In these words, some appear more often than others."
    " Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the {num_cw} most common words in the above list?"
    " Answer: The top {num_cw} words that appear most often in the list are:"
)
CUSTOM = CommonWords(common_words=4, common_repeats=9, other_repeats=2)


def sampler(task, tokenizer, *, length=8000):
    return Sampler(task, tokenizer, task_name="t", length=length, depths=[50.0], seed=3)


def make(task, tokenizer, *, count=6, **settings):
    return make_samples(sampler(task, tokenizer, **settings), count)


def make_builder(task, counter, length, index=0):
    builder_of = cwe.prepare(task, counter, TaskContext(length, ("a test",)))
    return builder_of(SampleContext(Random(index), index, DepthSampler([50.0], "a test")))


def numbered(words):
    return " ".join(f"{i + 1}. {word}" for i, word in enumerate(words))


def listed(text):
    """The words of the first list in a text."""
    return re.split(r" ?\b\d+\. ", text.split("\n")[1])[1:]


def split_example(prompt):
    """The worked example, and the prompt's own text."""
    example, own = prompt.split("\nBelow")
    return example, f"Below{own}"


def test_word_list_is_rulers():
    words = all_words()
    assert len(words) == len(set(words)) == 8166
    assert list(words) == sorted(words)


@pytest.mark.parametrize(
    ("task", "length", "repeats", "example"),
    [
        (CommonWords(), 8000, (30, 3), (10, 3, 30)),
        (CommonWords(), 4095, (6, 1), (3, 1, 10)),
        (CUSTOM, 4096, (9, 2), (10, 3, 30)),
        (CUSTOM, 3000, (9, 2), (3, 1, 10)),
    ],
)
def test_text_matches_the_published_one(tokenizer, task, length, repeats, example):
    for row in make(task, tokenizer, length=length).iter_rows(named=True):
        first, own = split_example(row["prompt"])
        words, common = listed(own), task.common_words
        assert own == PUBLISHED.format(context=numbered(words), num_cw=common)
        counts = Counter(words)
        assert set(words) <= set(all_words())
        assert sorted(set(counts.values())) == sorted(repeats)
        common_words = {word for word, times in counts.items() if times == repeats[0]}
        assert common_words == set(row["outputs"])
        assert len(row["outputs"]) == common
        example_words = listed(first)
        example_answer = re.split(r" ?\b\d+\. ", first.split(" are:")[1])[1:]
        assert first == (
            PUBLISHED.format(context=numbered(example_words), num_cw=common)
            + numbered(example_answer)
        )
        counts = Counter(example_words)
        assert Counter(counts.values()) == {example[0]: common, example[1]: example[2]}
        assert {word for word, times in counts.items() if times == example[0]} == set(
            example_answer
        )
        assert not set(example_answer) & set(words)


def test_samples_differ_in_words_and_order(byte_tokenizer):
    table = make(CommonWords(), byte_tokenizer, count=12)
    assert len({word for outputs in table["outputs"] for word in outputs}) > 100
    starts = {tuple(sorted(listed(split_example(prompt)[1])[:20])) for prompt in table["prompt"]}
    assert len(starts) == 12


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("task", [CommonWords(), CUSTOM], ids=["ruler", "custom"])
def test_summed_counts_match_the_tokenizer(name, task):
    tokenizer = ADDITIVE[name]()
    counters = [TokenCounter(tokenizer, frame) for frame in FRAMES]
    assert all(counter.additive for counter in counters)
    for index, length in enumerate(range(3000, 9000, 700)):
        counter = counters[index % 2]
        prompt = make_builder(task, counter, length, index).build(length)
        text = counter.chat_frame.text(prompt)
        encoding = prompt_tokenizer(tokenizer).encode(text)
        assert prompt.tokens == len(encoding)
        assert prompt.tokens <= length or length in range(4096, 4500)
        for needle in prompt.needles:
            character = len(counter.chat_frame.head) + needle.character
            assert re.match(r"\d\. ", text[character - 3 :])
            assert re.match(re.escape(needle.key) + r"(\n| \d)", text[character:])
            assert needle.token == counter.token_at(encoding, character)


def test_positions_match_the_tokenizer(tokenizer):
    for row in make(CommonWords(), tokenizer).iter_rows(named=True):
        encoding = prompt_tokenizer(tokenizer).encode(row["prompt"])
        assert row["tokens"] == len(encoding)
        assert [needle["key"] for needle in row["needles"]] == row["outputs"]
        for needle in row["needles"]:
            assert needle["value"] == needle["key"]
            start, end = encoding.offsets[needle["token_position"]]
            assert any(
                start <= match.start(1) < end
                for match in re.finditer(rf"\d\. ({re.escape(needle['key'])})\b", row["prompt"])
            )


@pytest.mark.parametrize(
    ("task", "length"), [(CommonWords(), 4095), (CUSTOM, 4096), (CommonWords(), 8192)]
)
def test_prompts_fill_the_length(task, length, tokenizer):
    table = make(task, tokenizer, length=length, count=12)
    fill = (table["tokens"] + task.max_new_tokens) / length
    assert fill.max() <= 1
    assert fill.mean() >= 0.99
    assert fill.min() >= 0.97


def test_rulers_parameters_fill_4096_tokens():
    table = make(CommonWords(), open_tokenizer(TINY), length=4096, count=30)
    fill = (table["tokens"] + 120) / 4096
    assert fill.max() <= 1
    assert fill.mean() >= 0.99
    assert fill.min() >= 0.97


def test_no_further_word_fits(byte_tokenizer):
    counter = TokenCounter(byte_tokenizer)
    builder = make_builder(CUSTOM, counter, 4096)
    sizes = {}
    for tokens in range(3000, 3200):
        prompt = builder.build(tokens)
        sizes[len(listed(split_example(counter.chat_frame.text(prompt))[1]))] = prompt.tokens
    assert sorted(sizes) == list(range(min(sizes), max(sizes) + 1, 2))
    for tokens in range(3050, 3200):
        assert builder.build(tokens).tokens == max(s for s in sizes.values() if s <= tokens)


def test_building_again_gives_the_same_prompt(byte_tokenizer):
    builder = make_builder(CommonWords(), TokenCounter(byte_tokenizer), 8000)
    first = builder.build(7000)
    builder.build(6000)
    assert builder.build(7000) == first


def test_slots_of_a_thousand_samples_are_even():
    counter = TokenCounter(ADDITIVE["tiny"]())
    task = CommonWords(common_words=3, common_repeats=4, other_repeats=1)
    builder_of = cwe.prepare(task, counter, TaskContext(2000, ("a test",)))
    depth_sampler, slots, places = DepthSampler([50.0], "a test"), [[], [], []], [[], [], []]
    for index in range(1000):
        prompt = builder_of(SampleContext(Random(index), index, depth_sampler)).build(1900)
        line = prompt.context.rindex("often.\n") + len("often.\n")
        items = prompt.context.count(". ", line)
        for j, needle in enumerate(prompt.needles):
            slots[j].append(int(needle.depth_percent // 5))
            places[j].append((prompt.context.count(". ", line, needle.character) - 1) / items)
            assert abs(100 * places[j][-1] - needle.depth_percent) < 100 * 4 / items
    for j in range(3):
        assert all(abs(slots[j].count(part) - 50) <= 2 for part in range(20))
        parts = [int(20 * place) for place in places[j]]
        assert all(abs(parts.count(part) - 50) <= 5 for part in range(20))


def test_a_length_beyond_the_content_names_the_largest(byte_tokenizer, probed_samples):
    task = CommonWords(common_words=3, common_repeats=4, other_repeats=1)
    with pytest.raises(
        ValueError,
        match=r"^lengths: 300000 is more than the content of task t fills; write \d+ or less$",
    ) as error:
        make(task, byte_tokenizer, length=300_000, count=1)
    largest = int(re.search(r"write (\d+) ", str(error.value))[1])
    table = make(task, byte_tokenizer, length=largest, count=20)
    assert (table["tokens"] + task.max_new_tokens).min() >= 0.99 * largest
    for prompt in table["prompt"]:
        assert len(set(listed(split_example(prompt)[1]))) > 0.99 * len(all_words())
    with pytest.raises(ValueError, match="is more than the content"):
        make(task, byte_tokenizer, length=int(1.02 * largest), count=1)


def test_exhausted_builder_names_its_longest_prompt(byte_tokenizer):
    builder = make_builder(CUSTOM, TokenCounter(byte_tokenizer), 300_000)
    with pytest.raises(ContentExhausted) as end:
        builder.build(300_000)
    assert builder.build(end.value.longest_tokens).tokens == end.value.longest_tokens


def test_a_length_that_is_too_small_names_the_smallest(either_tokenizer, probed_samples):
    for task in (CommonWords(), CUSTOM):
        with pytest.raises(
            ValueError, match=r"^lengths: 50 is too small for task t; write"
        ) as error:
            make(task, either_tokenizer, length=50)
        smallest = int(re.search(r"write (\d+) or more$", str(error.value))[1])
        make(task, either_tokenizer, length=smallest)
        with pytest.raises(ValueError, match="too small"):
            make(task, either_tokenizer, length=smallest - 1, count=probed_samples)
