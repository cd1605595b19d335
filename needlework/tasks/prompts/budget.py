"""Fill a prompt to its length: by arithmetic, or where counts do not add up, by trying."""

from collections.abc import Callable
from typing import Protocol

from needlework.tasks.prompts.prompt import Prompt
from needlework.tasks.prompts.token_counter import Counter


class Draft(Protocol):
    """A prompt that can be as long as asked."""

    def build(self, tokens: int) -> Prompt:
        """The longest prompt of at most `tokens` tokens by arithmetic, or the least there is.

        Raises:
            Exhausted: nothing is left to fill so many tokens with.
        """


class TooLong(Exception):
    """Even the least prompt has more tokens than there are."""


class Exhausted(Exception):
    """The task has come to its natural end."""

    def __init__(self, most_tokens: int):
        super().__init__(most_tokens)
        self.most_tokens = most_tokens
        """Of the longest prompt there is."""


def fill(draft: Draft, counter: Counter, budget_tokens: int, answer: str = "") -> Prompt:
    """The longest prompt that, with `answer` behind it, has at most `budget_tokens` tokens.

    Special tokens that the tokenizer adds are counted. Where the tokenizer's counts do not add up
    (`counter.additive`), prompts are tokenized whole and the target is moved by what is amiss.

    Raises:
        TooLong: the least prompt is over the budget.
        Exhausted: as Draft.build.
    """
    if counter.additive:
        prompt = draft.build(budget_tokens)
        if prompt.tokens > budget_tokens:
            raise TooLong
        return prompt
    target, best, tried, down = budget_tokens, None, set(), 1
    while target > 0:
        try:
            prompt = draft.build(target)
        except Exhausted:
            if best is None:
                raise
            break
        tokens = counter.whole(text_of(prompt, counter) + answer)
        if tokens <= budget_tokens and (best is None or tokens > best.tokens):
            best = prompt._replace(tokens=tokens)
        if tokens == budget_tokens or (best is not None and prompt.context in tried):
            break
        if prompt.context in tried:
            # None has fitted yet, and so small a step changed nothing.
            target -= (down := 2 * down)
        else:
            target += budget_tokens - tokens
        tried.add(prompt.context)
    if best is None:
        raise TooLong
    return best


def text_of(prompt: Prompt, counter: Counter) -> str:
    """What a text model reads: the frame's beginning, context, question, answer's beginning."""
    close = counter.close(prompt.question, prompt.answer_prefix)
    return counter.frame.head + prompt.context + close


def least_tokens(draft: Draft, counter: Counter, answer: str = "") -> int:
    """Tokens of the least prompt with `answer` behind it, special tokens counted."""
    prompt = draft.build(0)
    if counter.additive:
        return prompt.tokens
    return counter.whole(text_of(prompt, counter) + answer)


def smallest_length(too_small: int, needed: Callable[[int], int]) -> int:
    """The first length above `too_small` that is at least what is `needed` at it."""
    length = too_small + 1
    while (need := needed(length)) > length:
        length = max(need, length + 1)
    while length > too_small + 1 and needed(length - 1) < length:
        length -= 1
    return length
