"""The arithmetic against trying every length."""

from random import Random

import pytest

from needlework.config.tasks import NiahMultikey1, NiahMultikey2, NiahSingle1, Passkey
from needlework.tasks import niah, passkey
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.prompts.budget import TooLong, fill, least_tokens, smallest_length, text_of
from needlework.tasks.prompts.depth_sampler import Spread
from needlework.tasks.prompts.prompt import PLAIN, Prompt
from needlework.tasks.prompts.token_counter import Counter

CASES = [
    (passkey, Passkey()),
    (niah, NiahSingle1()),
    (niah, NiahMultikey1()),
    (niah, NiahMultikey2()),
]


def draft_of(module, task, counter, depth_percent=35.0):
    drafts = module.drafts(task, counter, Setting(1000, ("a test",)))
    return drafts(SampleContext(Random(5), 0, Spread([depth_percent], "a test")))


@pytest.mark.parametrize(("module", "task"), CASES, ids=lambda case: getattr(case, "type", ""))
@pytest.mark.parametrize("depth_percent", [0.0, 35.0, 100.0])
def test_nothing_longer_fits(byte_tokenizer, module, task, depth_percent):
    counter = Counter(byte_tokenizer)
    built = {
        len(byte_tokenizer.encode(text_of(draft.build(tokens), counter)))
        for draft in [draft_of(module, task, counter, depth_percent)]
        for tokens in range(200, 600)
    }
    for budget in range(320, 400, 3):
        draft = draft_of(module, task, counter, depth_percent)
        prompt = fill(draft, counter, budget)
        assert prompt.tokens == len(byte_tokenizer.encode(text_of(prompt, counter)))
        assert prompt.tokens == max(tokens for tokens in built if tokens <= budget)


@pytest.mark.parametrize(("module", "task"), CASES, ids=lambda case: getattr(case, "type", ""))
def test_least_prompt_is_the_limit(tokenizer, module, task):
    counter = Counter(tokenizer)
    draft = draft_of(module, task, counter)
    least = least_tokens(draft, counter)
    assert fill(draft, counter, least).tokens <= least
    with pytest.raises(TooLong):
        fill(draft, counter, least - 1)


@pytest.mark.parametrize("noise", [0, 1, 7])
def test_smallest_length_works_and_the_one_below_does_not(noise):
    def needed(length):
        return 300 + (length * 31) % (noise + 1)

    found = smallest_length(50, needed)
    assert needed(found) <= found
    assert needed(found - 1) > found - 1


class Steps:
    """A draft whose sums are too small by 40, and which grows by 100."""

    def build(self, tokens):
        size = max(100, tokens // 100 * 100)
        return Prompt(" ".join(["a"] * (size + 40)), "", "", (), (), size)


class Words:
    """Counts words, and says that sums cannot be trusted."""

    additive, frame = False, PLAIN

    def whole(self, text):
        return len(text.split())

    def close(self, question, answer_prefix):
        return question + answer_prefix


@pytest.mark.parametrize(("budget", "best"), [(330, 240), (339, 240), (340, 340), (140, 140)])
def test_sums_that_are_too_small_still_find_what_fits(budget, best):
    assert fill(Steps(), Words(), budget).tokens == best


def test_sums_that_are_too_small_and_nothing_fits():
    with pytest.raises(TooLong):
        fill(Steps(), Words(), 139)
