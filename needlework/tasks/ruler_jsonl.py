"""Samples in RULER's JSON lines, made elsewhere."""

import re
from collections.abc import Callable

from needlework.config.tasks import RulerJsonl
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.formats.ruler_files import read_ruler_jsonl
from needlework.tasks.prompts.budget import text_of
from needlework.tasks.prompts.prompt import Prompt
from needlework.tasks.prompts.token_counter import Counter

_VALUES = {
    "numbers": re.compile(r"[0-9]"),
    "words": re.compile(r"[^\W\d_]"),
    "uuids": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "text": re.compile(""),
}


class Draft:
    """A prompt as it is. A fill.Draft."""

    def __init__(self, prompt: Prompt, counter: Counter, where: str):
        tokens = counter.whole(text_of(prompt, counter))
        self._prompt, self._where = prompt._replace(tokens=tokens), where

    def build(self, tokens: int) -> Prompt:
        if self._prompt.tokens > tokens:
            raise ValueError(
                f"{self._where} has {self._prompt.tokens} tokens, and there is room for {tokens};"
                " name a greater length, or a smaller max_new_tokens"
            )
        return self._prompt


def drafts(
    task: RulerJsonl, counter: Counter, setting: Setting
) -> Callable[[SampleContext], Draft]:
    """What makes the draft of a sample: the file's rows in their order.

    Where rows say their `max_length`, those of another length are left out.
    """
    path = task.path.replace("{length}", str(setting.length))
    rows = [
        row
        for row in read_ruler_jsonl(path)
        if row.get("max_length", setting.length) == setting.length
    ]

    if not rows:
        raise ValueError(f"{path}: no rows of length {setting.length}")
    for number, row in enumerate(rows, start=1):
        for output in row["outputs"]:
            if not _VALUES[task.value_type].search(output.lower()):
                raise ValueError(
                    f"{path}: row {number} has the output {output!r:.40}, which holds no"
                    f" {task.value_type}; write another value_type, such as text"
                )

    def draft(turn: SampleContext) -> Draft:
        if turn.index >= len(rows):
            raise ValueError(
                f"{path}: {len(rows)} rows of length {setting.length}; write samples: {len(rows)}"
                " or less"
            )
        row = rows[turn.index]
        prompt = Prompt(row["input"], "", row["answer_prefix"], tuple(row["outputs"]), (), 0)
        return Draft(prompt, counter, f"{path}: row {turn.index + 1}")

    return draft
