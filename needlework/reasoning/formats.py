"""Formats of the reasoning that thinking models write before the answer."""

import re
from collections.abc import Iterable
from typing import Literal

from needlework.config.models.thought import ThoughtFormat

Outcome = Literal["answer", "empty", "truncated_thought"]

THINK = ThoughtFormat(open="<think>", close="</think>")
FORMATS = (
    THINK,
    ThoughtFormat(open="[THINK]", close="[/THINK]"),
    ThoughtFormat(open="<thinking>", close="</thinking>"),
    ThoughtFormat(open="<thought>", close="</thought>"),
    ThoughtFormat(open="<reasoning>", close="</reasoning>"),
    ThoughtFormat(open="<seed:think>", close="</seed:think>"),
    ThoughtFormat(open="<|begin_of_thought|>", close="<|end_of_thought|>"),
    ThoughtFormat(open="<|START_THINKING|>", close="<|END_THINKING|>"),
    ThoughtFormat(open="◁think▷", close="◁/think▷"),
    ThoughtFormat(
        open="<|channel|>analysis<|message|>",
        close="<|end|>",
        final="<|start|>assistant<|channel|>final<|message|>",
    ),
)
"""Every known format; a model's entry can name another one in `thought_format`."""

_TAG = re.compile(r"(?:<\|?([^\W\d][\w:.-]*)\|?>|\[([^\W\d]\w*)\]|◁(\w+)▷)$")
_THOUGHT_NAME = re.compile(
    r"think|thought|reason|reflect|analysis|scratch|ponder|monolog|deliberat|\bcot\b", re.IGNORECASE
)
_ROLE_NAMES = {"s", "assistant", "bot", "model", "gpt", "ai", "answer", "response", "turn", "end"}
_SHORTEST_ROLE = 8


def strip_reasoning(prediction: str, own: ThoughtFormat | None = None) -> str:
    """Return the text after the reasoning, or nothing if that is never closed.

    Args:
        own: the model's format; None: any of FORMATS.
    """
    for thought in FORMATS if own is None else (own,):
        if thought.final:
            if thought.final in prediction:
                prediction = prediction.rpartition(thought.final)[2]
            elif thought.open in prediction:
                return ""
            continue
        prediction = prediction.rpartition(thought.close)[2]
        if prediction.lstrip().startswith(thought.open):
            return ""
    return prediction


def outcome(prediction: str, own: ThoughtFormat | None = None) -> Outcome:
    """Whether a prediction has an answer, is empty, or ends within its reasoning."""
    if strip_reasoning(prediction, own).strip():
        return "answer"
    formats = FORMATS if own is None else (own,)
    opened = any(thought.open in prediction for thought in formats)
    closed = any(prediction.rstrip().endswith(thought.close) for thought in formats)
    return "truncated_thought" if opened and not closed else "empty"


def format_of(template: object, own: ThoughtFormat | None = None) -> ThoughtFormat | None:
    """The format whose tags occur in a chat template, or in one of several by name, or `own`.

    None if there is none.
    """
    if isinstance(template, dict):
        template = "\n".join(template.values())
    if own is not None or not isinstance(template, str):
        return own
    # The longest tag first: one may be part of another.
    for thought in sorted(FORMATS, key=lambda thought: -len(thought.open)):
        if thought.open in template or (not thought.final and thought.close in template):
            return thought
    ends = [thought for thought in FORMATS if thought.final and _begun(template, thought)]
    return ends[0] if ends else None


def opens_reasoning(prompt: str, thought: ThoughtFormat = THINK) -> bool:
    """Whether a prompt ends with an open reasoning tag."""
    return prompt.rstrip().endswith(thought.open.rstrip())


def complete_final(tail: str, thought: ThoughtFormat) -> str:
    """Add what is missing of the text that opens the answer, if `tail` ends within it."""
    return tail + thought.final[_begun(tail, thought) :] if _begun(tail, thought) else tail


def unknown_opener(tail: str, template: str, known: Iterable[str] = ()) -> str | None:
    """A tag at the end of a rendered prompt that seems to open reasoning in an unknown format.

    Args:
        tail: the rendered text after the message.
        template: the template's source.
        known: tags that open no reasoning.
    """
    match = _TAG.search(tail.rstrip())
    if match is None or match[0] in known:
        return None
    name = next(group for group in match.groups() if group)
    if name.lower() in _ROLE_NAMES:
        return None
    has_closer = any(closer in template for closer in (f"</{name}>", f"[/{name}]", f"◁/{name}▷"))
    return match[0] if has_closer or _THOUGHT_NAME.search(name) else None


def _begun(text: str, thought: ThoughtFormat) -> int:
    """How many characters of the text that opens the answer `text` ends with."""
    ends = range(len(thought.final), _SHORTEST_ROLE, -1)
    return next((end for end in ends if text.rstrip().endswith(thought.final[:end])), 0)
