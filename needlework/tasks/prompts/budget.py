"""Fit a prompt to a token budget: by arithmetic, or by trial where token counts do not add up."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from needlework.tasks.prompts.prompt import Prompt
from needlework.tasks.prompts.token_counter import TokenCounter


class PromptBuilder(Protocol):
    """Builds the prompt of one sample at any length."""

    def build(self, max_tokens: int) -> Prompt:
        """Build the longest prompt of at most `max_tokens` tokens, or else the shortest possible.

        Token counts are sums over the prompt's pieces.

        Raises:
            ContentExhausted: the task has too little content to fill the budget.
        """


@runtime_checkable
class FindsAnswers(Protocol):
    """A prompt builder that knows which text states the answers."""

    def answers_elsewhere(self, prompt: Prompt) -> dict[str, int]:
        """How often each answer occurs in the context outside that text; only if it does."""


class BudgetTooSmall(Exception):
    """Even the shortest prompt exceeds the budget."""


class ContentExhausted(Exception):
    """The task's content does not fill the budget."""

    def __init__(self, longest_tokens: int):
        super().__init__(longest_tokens)
        self.longest_tokens = longest_tokens
        """Tokens of the longest possible prompt."""


def fit_prompt(
    builder: PromptBuilder, counter: TokenCounter, budget_tokens: int, answer: str = ""
) -> Prompt:
    """Build the longest prompt that has at most `budget_tokens` tokens with `answer` appended.

    Special tokens count. If the tokenizer's counts do not add up (`counter.additive` is false),
    whole prompts are tokenized and the target is corrected by the error until it fits.

    Raises:
        BudgetTooSmall: even the shortest prompt exceeds the budget.
        ContentExhausted: see PromptBuilder.build.
    """
    if counter.additive:
        prompt = builder.build(budget_tokens)
        if prompt.tokens > budget_tokens:
            raise BudgetTooSmall
        return prompt
    target, best, tried, step = budget_tokens, None, set(), 1
    while target > 0:
        try:
            prompt = builder.build(target)
        except ContentExhausted:
            if best is None:
                raise
            break
        tokens = counter.count_prompt(prompt, answer)
        if tokens <= budget_tokens and (best is None or tokens > best.tokens):
            best = prompt._replace(tokens=tokens)
        if tokens == budget_tokens or (best is not None and prompt.context in tried):
            break
        if prompt.context in tried:
            # Nothing fits yet and the last step was too small to change the prompt.
            step *= 2
            target -= step
        else:
            target += budget_tokens - tokens
        tried.add(prompt.context)
    if best is None:
        raise BudgetTooSmall
    return best


def shortest_tokens(builder: PromptBuilder, counter: TokenCounter, answer: str = "") -> int:
    """Tokens of the shortest prompt with `answer` appended, special tokens included."""
    prompt = builder.build(0)
    if counter.additive:
        return prompt.tokens
    return counter.count_prompt(prompt, answer)


def smallest_length(too_small: int, required: Callable[[int], int]) -> int:
    """Find the smallest length above `too_small` that satisfies `required(length) <= length`."""
    length = too_small + 1
    while (needed := required(length)) > length:
        length = max(needed, length + 1)
    while length > too_small + 1 and required(length - 1) < length:
        length -= 1
    return length
