"""Task `ruler_jsonl`: existing samples in RULER's JSON lines."""

import re
from collections.abc import Callable

from needlework.config.tasks.ruler_jsonl import RulerJsonl
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.formats.ruler_files import read_ruler_jsonl
from needlework.tasks.prompts.prompt import Message, Prompt
from needlework.tasks.prompts.token_counter import TokenCounter

_VALUE_PATTERNS = {
    "numbers": re.compile(r"[0-9]"),
    "words": re.compile(r"[^\W\d_]"),
    "uuids": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "text": re.compile(""),
    "choice": re.compile(r"^[a-z]$"),
}


class FixedPrompt:
    """A prompt builder for a prompt that exists already."""

    def __init__(self, prompt: Prompt, counter: TokenCounter, location: str):
        tokens = counter.count_prompt(prompt)
        self._prompt, self._location = prompt._replace(tokens=tokens), location

    def build(self, max_tokens: int) -> Prompt:
        if self._prompt.tokens > max_tokens:
            raise ValueError(
                f"{self._location} has {self._prompt.tokens} tokens, but only {max_tokens} fit;"
                " write a greater length, or a smaller max_new_tokens"
            )
        return self._prompt


def prepare(
    task: RulerJsonl, counter: TokenCounter, task_context: TaskContext
) -> Callable[[SampleContext], FixedPrompt]:
    """Return a function that makes a sample's prompt builder: sample i is row i of the file.

    Rows with a `max_length` other than the task's length are skipped.

    Raises:
        ValueError: the file has no rows of this length, an output holds no value of
            `task.value_type`, or there are more samples than rows.
    """
    path, length = task.path.replace("{length}", str(task_context.length)), task_context.length
    rows = [row for row in read_ruler_jsonl(path) if row.max_length in (None, length)]
    if not rows:
        raise ValueError(f"{path}: no rows of length {length}")
    for number, row in enumerate(rows, start=1):
        for output in row.outputs:
            if not _VALUE_PATTERNS[task.value_type].search(output.lower()):
                raise ValueError(
                    f"{path}: row {number} has the output {output!r:.40}, which contains no"
                    f" {task.value_type}; write another value_type, such as text"
                )

    def prompt_builder(sample: SampleContext) -> FixedPrompt:
        if sample.index >= len(rows):
            raise ValueError(
                f"{path}: {len(rows)} rows of length {length}; write samples: {len(rows)} or less"
            )
        row = rows[sample.index]
        location = f"{path}: row {sample.index + 1}"
        *history, last = [Message(message.role, message.content) for message in row.turns] or [
            Message("user", row.input)
        ]
        if history and counter.chat_frame.parts_of is None:
            raise ValueError(
                f"{location} has messages, which need a chat model; write chat_template: true, "
                "or endpoint: chat, for the model"
            )
        prompt = Prompt(
            last.content,
            "",
            row.prefix,
            tuple(row.outputs),
            (),
            0,
            tuple(history),
            row.required_prefix if task.metric == "prefix_ratio" else None,
        )
        return FixedPrompt(prompt, counter, location)

    return prompt_builder
