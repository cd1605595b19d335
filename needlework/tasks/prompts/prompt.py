"""Prompts: text in three parts, expected outputs, needle positions, and the chat template."""

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


class ChatFrame(NamedTuple):
    """The text that a chat template puts around a prompt.

    The full prompt is head + context + question + tail + answer_prefix if `prefills`, else
    head + context + question + answer_prefix + tail.
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

    def closing_text(self, question: str, answer_prefix: str) -> str:
        """The text after the context: question and answer prefix inside the chat template."""
        if self.tail == "":
            return question + answer_prefix
        if not self.prefills:
            return question + answer_prefix + self.tail
        return question + self.tail + answer_prefix.lstrip()

    def text(self, prompt: Prompt) -> str:
        """The full text that the model reads."""
        return self.head + prompt.context + self.closing_text(prompt.question, prompt.answer_prefix)


NO_CHAT_FRAME = ChatFrame("", "", None, True)
"""No chat template: the prompt of a base model."""
