"""A budget of tokens for a model's thoughts: when it is spent, the thought is closed."""

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from needlework.reasoning.tags import CLOSE_TAG, CLOSING_TEXT, OPEN_TAG


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends inside a thought that it has opened."""
    return prompt.rstrip().endswith(OPEN_TAG)


class ThinkingBudget(LogitsProcessor):
    """Closes a thought that is still open after `thinking_tokens` new tokens.

    From then on the tokens of a line break, `</think>` and an empty line are forced one by one, and
    the model is left alone: as it is before, and where it has closed its thought by itself. A
    thought is open where the prompt opened it, or as soon as the model writes `<think>`. The tokens
    that close it come on top of the budget; samples have room for them.

    Rows of a batch have budgets of their own. Pass a new one to each call of `generate`, which must
    not reorder rows (no beams).

    Raises:
        ValueError: the tokenizer cannot write `</think>`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, thinking_tokens: int, prompt_tokens: int
    ):
        self._tokenizer = tokenizer
        self._thinking_tokens, self._prompt_tokens = thinking_tokens, prompt_tokens
        self._ending = tokenizer.encode(CLOSING_TEXT, add_special_tokens=False)
        if CLOSE_TAG not in self._text(self._ending):
            raise ValueError(f"thinking_tokens: the tokenizer cannot write {CLOSE_TAG}; set 0")
        self._rows: list[_Row] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (batch, vocabulary) of the next token, all but a forced one at minus infinity."""
        if not self._rows:
            prompts = input_ids[:, : self._prompt_tokens]
            self._rows = [_Row(opens_thought(self._end(prompt))) for prompt in prompts]
        new_tokens = input_ids.shape[1] - self._prompt_tokens
        forced = scores
        for i, row in enumerate(self._rows):
            if row.closed:
                continue
            if row.forced == 0:
                row.read(self._end(input_ids[i, self._prompt_tokens :]))
            if row.open and not row.closed and new_tokens >= self._thinking_tokens:
                forced = forced.clone() if forced is scores else forced
                forced[i] = -torch.inf
                forced[i, self._ending[row.forced]] = 0
                row.forced += 1
                row.closed = row.forced == len(self._ending)
        return forced

    def _end(self, ids: torch.Tensor) -> str:
        # A token has a character at least, so a tag that the last one ends lies within; the white
        # space behind a prompt's tag needs a few more.
        return self._text(ids[-2 * len(CLOSE_TAG) :].tolist())

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


class _Row:
    """How far one row of the batch is."""

    def __init__(self, is_open: bool):
        self.open = is_open
        self.closed = False
        self.forced = 0
        """Tokens of the ending that have been forced."""

    def read(self, end: str) -> None:
        self.open |= OPEN_TAG in end
        self.closed |= self.open and CLOSE_TAG in end
