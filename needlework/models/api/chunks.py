"""Text, reasoning and counts in streamed chunks, as different servers write them.

The client does not validate the JSON that it reads: any field may be null, missing, or of another
type, and unknown fields are plain dictionaries.
"""

from collections.abc import Mapping
from typing import Any

_LENGTH_REASONS = {
    *("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length"),
    "model_context_window_exceeded",
}
FILTER_REASONS = {"content_filter", "content_filtered", "safety", "prohibited_content"}
FAILURE_REASONS = {"error", "abort", "aborted", "cancelled", "insufficient_system_resource"}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "reasoning_text")


def field(value: Any, name: str) -> Any:
    """A field of an object or dictionary, or None."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def choices(chunk: Any) -> list[Any]:
    """The choices of a chunk that are not null."""
    found = field(chunk, "choices")
    return [choice for choice in found if choice is not None] if isinstance(found, list) else []


def parts_of_choice(choice: Any) -> tuple[str, str]:
    """Answer and reasoning text of a choice: of its delta, its message, or its text."""
    delta = field(choice, "delta")
    delta = field(choice, "message") if delta is None else delta
    if delta is None or isinstance(delta, str):
        return delta or _text(field(choice, "text")), ""
    content = field(delta, "content")
    answer, reasoning = _text(content), _reasoning(content)
    if not answer:
        answer = _text(field(delta, "text")) or _text(field(delta, "refusal"))
    for key in _REASONING_KEYS:
        reasoning = reasoning or _text(field(delta, key), thoughts=True)
    return answer, reasoning


def is_length(finish_reason: str) -> bool:
    """Whether an answer ended because its tokens were used up."""
    return finish_reason.lower() in _LENGTH_REASONS


def count(usage: Any, name: str) -> int | None:
    """A token count, or None if it is not a whole number from 0."""
    number = field(usage, name)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return number if type(number) is int and number >= 0 else None


def _is_thought(part: Any) -> bool:
    kind = str(field(part, "type") or "")
    return "think" in kind or "reason" in kind


def _text(content: Any, thoughts: bool = False) -> str:
    """The text of content: a string, a part, or a list of them; thoughts only if asked for."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        return "".join(_text(part, thoughts) for part in content)
    if _is_thought(content) and not thoughts:
        return ""
    keys = ("text", "value", "content", *(_REASONING_KEYS if thoughts else ()))
    return next((text for key in keys if (text := _text(field(content, key), thoughts))), "")


def _reasoning(content: Any) -> str:
    """The text of parts that are thoughts."""
    if not isinstance(content, list):
        return ""
    return "".join(_text(part, thoughts=True) for part in content if _is_thought(part))
