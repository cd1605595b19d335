"""Prompts: text in three parts, expected outputs, needle positions, and the chat template."""

from collections.abc import Callable
from typing import NamedTuple

from needlework.config.models.thought import ThoughtFormat


class Needle(NamedTuple):
    """A key and value hidden in the context."""

    key: str
    value: str
    depth_percent: float
    """Intended depth: 0 is the start of the haystack, 100 its end."""
    character: int
    """Offset in the context at which the needle's line, sentence or word starts."""
    token: int
    """Index of its first token in the prompt, special tokens included, computed by sums."""


class Message(NamedTuple):
    """An earlier turn of a conversation."""

    role: str
    content: str


class Prompt(NamedTuple):
    """A prompt and its reference answers.

    If several outputs are expected, `needles[j]` holds `outputs[j]`.
    """

    context: str
    question: str
    answer_prefix: str
    outputs: tuple[str, ...]
    needles: tuple[Needle, ...]
    tokens: int
    """Tokens of the whole prompt, computed as the sum of its pieces."""
    history: tuple[Message, ...] = ()
    """Messages before the context, which is part of the user's last one."""
    required_prefix: str | None = None
    """Text that a right answer starts with, if similarity after it is scored."""


Parts = tuple[str | int, ...]
"""A rendered conversation: texts of the chat template, and numbers of the messages between."""


class ChatFrame(NamedTuple):
    """The text that a chat template puts around a prompt.

    The full prompt is head + context + question + tail + answer_prefix if `prefills`, else
    head + context + question + answer_prefix + tail. Earlier messages are in the head.
    """

    head: str
    """Text before the context, without special tokens that the tokenizer adds itself."""
    tail: str
    """Text between the question and the start of the model's answer."""
    system_prompt: str | None
    """The system message, already part of `head`."""
    prefills: bool
    """Whether the answer prefix starts the assistant's turn. False for models that think first."""
    thought: ThoughtFormat | None = None
    """Format of the reasoning; None: `<think>`, or no reasoning."""
    parts_of: Callable[[tuple[str, ...]], Parts] | None = None
    """The parts of a conversation between the given roles; None: no conversations."""

    def conversation(self, history: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages before the last one, with the system message first."""
        if self.system_prompt is None or "system" in [message.role for message in history]:
            return history
        return (Message("system", self.system_prompt), *history)

    def closing_text(self, question: str, answer_prefix: str) -> str:
        """The text after the context: question and answer prefix inside the chat template."""
        if self.tail == "":
            return question + answer_prefix
        if not self.prefills:
            return question + answer_prefix + self.tail
        return question + self.tail + answer_prefix.lstrip()

    def text(self, prompt: Prompt) -> str:
        """The full text that the model reads."""
        frame = self if not prompt.history else self._after(prompt.history)
        closing_text = frame.closing_text(prompt.question, prompt.answer_prefix)
        return frame.head + prompt.context + closing_text

    def _after(self, history: tuple[Message, ...]) -> "ChatFrame":
        """The frame of the last message of a conversation."""
        if self.parts_of is None:
            raise ValueError("messages need a chat template")
        messages = self.conversation(history)
        parts = self.parts_of((*(message.role for message in messages), "user"))
        last = parts.index(len(messages))
        before, after = (
            "".join(part if isinstance(part, str) else messages[part].content for part in side)
            for side in (parts[:last], parts[last + 1 :])
        )
        return self._replace(head=before, tail=after)


NO_CHAT_FRAME = ChatFrame("", "", None, True)
"""No chat template: the prompt of a base model."""


def _lines(roles: tuple[str, ...]) -> Parts:
    return (0, *(part for number in range(1, len(roles)) for part in ("\n", number)))


SERVER_CHAT_FRAME = NO_CHAT_FRAME._replace(parts_of=_lines)
"""A server applies the chat template: messages are lines, for counting."""
