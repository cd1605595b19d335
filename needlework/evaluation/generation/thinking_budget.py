"""Token budget of a model's reasoning, which is closed when the budget is spent."""

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from needlework.config.models.thought import ThoughtFormat
from needlework.reasoning.formats import THINK, opens_reasoning


class ThinkingBudget(LogitsProcessor):
    """Closes reasoning that is still open after `thinking_tokens` new tokens.

    It then forces the tokens that close it (a line break, `</think>` and an empty line), one per
    step; all other steps are unchanged. Reasoning is open if the prompt ends with its opening tag,
    or once the model writes it. The closing tokens come on top of the budget; samples leave room
    for them.

    Each row of a batch has its own budget. Pass a new instance to each call of `generate`, which
    must not reorder rows (no beams).

    Raises:
        ValueError: the tokenizer cannot encode the closing tag.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        thinking_tokens: int,
        prompt_tokens: int,
        thought: ThoughtFormat = THINK,
    ):
        self._tokenizer, self._thought = tokenizer, thought
        self._thinking_tokens, self._prompt_tokens = thinking_tokens, prompt_tokens
        self._closing_ids = tokenizer.encode(thought.closing_text, add_special_tokens=False)
        if thought.close not in self._text(self._closing_ids):
            raise ValueError(
                f"thinking_tokens: the tokenizer cannot write {thought.close}; write 0"
            )
        self._rows: list[_RowState] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [batch, vocabulary]; all but a forced token are minus infinity."""
        if not self._rows:
            thought = self._thought
            prompts = input_ids[:, : self._prompt_tokens]
            self._rows = [
                _RowState(opens_reasoning(self._tail(prompt), thought), thought)
                for prompt in prompts
            ]
        new_tokens = input_ids.shape[1] - self._prompt_tokens
        forced = scores
        for i, row in enumerate(self._rows):
            if row.closed:
                continue
            if row.forced_tokens == 0:
                row.update(self._tail(input_ids[i, self._prompt_tokens :]))
            if row.open and not row.closed and new_tokens >= self._thinking_tokens:
                forced = forced.clone() if forced is scores else forced
                forced[i] = -torch.inf
                forced[i, self._closing_ids[row.forced_tokens]] = 0
                row.forced_tokens += 1
                row.closed = row.forced_tokens == len(self._closing_ids)
        return forced

    def _tail(self, ids: torch.Tensor) -> str:
        # A token has at least one character, so these hold any tag that the last one completes, and
        # white space after the tag of a prompt.
        return self._text(
            ids[-2 * max(len(self._thought.open), len(self._thought.close)) :].tolist()
        )

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


class _RowState:
    """State of the reasoning in one row of the batch."""

    def __init__(self, is_open: bool, thought: ThoughtFormat):
        self._thought = thought
        self.open = is_open
        self.closed = False
        self.forced_tokens = 0
        """Closing tokens forced so far."""

    def update(self, tail: str) -> None:
        """Look for tags at the end of the text."""
        self.open |= self._thought.open in tail
        self.closed |= self.open and self._thought.close in tail
