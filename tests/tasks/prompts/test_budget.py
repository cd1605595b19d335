"""The arithmetic against trying every length."""

from random import Random

import pytest

from needlework.config.tasks.niah import NiahMultikey1, NiahMultikey2, NiahSingle1
from needlework.config.tasks.passkey import Passkey
from needlework.tasks import niah, passkey
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.prompts.budget import (
    BudgetTooSmall,
    fit_prompt,
    shortest_tokens,
    smallest_length,
)
from needlework.tasks.prompts.depth_sampler import DepthSampler
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, Prompt
from needlework.tasks.prompts.token_counter import TokenCounter

pytestmark = pytest.mark.slow

CASES = [
    (passkey, Passkey()),
    (niah, NiahSingle1()),
    (niah, NiahMultikey1()),
    (niah, NiahMultikey2()),
]


def make_builder(module, task, counter, depth_percent=35.0):
    builder_of = module.prepare(task, counter, TaskContext(1000, ("a test",)))
    return builder_of(SampleContext(Random(5), 0, DepthSampler([depth_percent], "a test")))


@pytest.mark.parametrize(("module", "task"), CASES, ids=lambda case: getattr(case, "type", ""))
@pytest.mark.parametrize("depth_percent", [0.0, 35.0, 100.0])
def test_fitted_prompt_is_the_longest_that_fits(byte_tokenizer, module, task, depth_percent):
    counter = TokenCounter(byte_tokenizer)
    built = {
        len(byte_tokenizer.encode(counter.chat_frame.text(builder.build(tokens))))
        for builder in [make_builder(module, task, counter, depth_percent)]
        for tokens in range(260, 440)
    }
    for budget in range(320, 400, 7):
        builder = make_builder(module, task, counter, depth_percent)
        prompt = fit_prompt(builder, counter, budget)
        assert prompt.tokens == len(byte_tokenizer.encode(counter.chat_frame.text(prompt)))
        assert prompt.tokens == max(tokens for tokens in built if tokens <= budget)


@pytest.mark.parametrize(("module", "task"), CASES, ids=lambda case: getattr(case, "type", ""))
def test_shortest_prompt_is_the_smallest_budget(tokenizer, module, task):
    counter = TokenCounter(tokenizer)
    builder = make_builder(module, task, counter)
    shortest = shortest_tokens(builder, counter)
    assert fit_prompt(builder, counter, shortest).tokens <= shortest
    with pytest.raises(BudgetTooSmall):
        fit_prompt(builder, counter, shortest - 1)


@pytest.mark.parametrize("noise", [0, 1, 7])
def test_smallest_length_works_and_the_one_below_does_not(noise):
    def needed(length):
        return 300 + (length * 31) % (noise + 1)

    smallest = smallest_length(50, needed)
    assert needed(smallest) <= smallest
    assert needed(smallest - 1) > smallest - 1


class CoarseBuilder:
    """Builds prompts in steps of 100 words that have 40 words more than it says."""

    def build(self, max_tokens):
        size = max(100, max_tokens // 100 * 100)
        return Prompt(" ".join(["a"] * (size + 40)), "", "", (), (), size)


class WordCounter:
    """Counts words, and says that counts do not add up."""

    additive, chat_frame = False, NO_CHAT_FRAME

    def count_prompt(self, prompt, answer):
        return len((prompt.context + answer).split())


@pytest.mark.parametrize(("budget", "best"), [(330, 240), (339, 240), (340, 340), (140, 140)])
def test_finds_the_longest_fit_if_sums_are_too_small(budget, best):
    assert fit_prompt(CoarseBuilder(), WordCounter(), budget).tokens == best


def test_reports_that_nothing_fits_if_sums_are_too_small():
    with pytest.raises(BudgetTooSmall):
        fit_prompt(CoarseBuilder(), WordCounter(), 139)
