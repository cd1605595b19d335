"""Special tokens in a prompt: those that a chat template puts there, and text that spells them."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Literal

from tokenizers import AddedToken, Tokenizer

from needlework.sources.added_tokens import prompt_tokenizer, reading_special_tokens_as_text

SpecialTokens = Literal["text", "allow"]
"""What text that spells a special token becomes: its characters, or the token."""
_STAND_INS = 0xF0000
"""The first of 65,534 characters that Unicode leaves to private use."""


class ControlTokens:
    """A tokenizer that reads special tokens only where a chat template puts them.

    There the prompt gets a stand-in: a token of the same number of characters, so that offsets stay
    the same, that no text contains.

    Attributes:
        tokenizer: reads stand-ins as tokens, and special tokens as text; its counts and offsets are
            those of the prompt, its ids of stand-ins are not.
        allowing: reads every special token as a token.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.allowing = prompt_tokenizer(tokenizer, "allow")
        self.tokenizer = reading_special_tokens_as_text(Tokenizer.from_str(self.allowing.to_str()))
        added = self.allowing.get_added_tokens_decoder()
        special = {i: token for i, token in sorted(added.items()) if token.special}
        self._stand_ins = {
            token.content: chr(_STAND_INS + number) * len(token.content)
            for number, token in enumerate(special.values())
        }
        self.tokenizer.add_tokens(
            [
                AddedToken(
                    self._stand_ins[token.content],
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=False,
                )
                for token in special.values()
            ]
        )
        self._special_ids = {
            self.tokenizer.token_to_id(self._stand_ins[token.content]): i
            for i, token in special.items()
        }
        self._pattern = special_token_pattern(tokenizer)

    def mark(self, text: str, literal: str = "") -> str:
        """The text with a stand-in in place of each special token, except within `literal`."""
        if self._pattern is None:
            return text
        if literal and self._pattern.search(literal):
            return literal.join(self.mark(part) for part in text.split(literal))
        return self._pattern.sub(lambda match: self._stand_ins[match[0]], text)

    def spelled(self, text: str) -> Counter[str]:
        """How often a text spells each special token."""
        return spelled_tokens(self._pattern, text)

    def spans(self, text: str, marked: str) -> list[list[int]]:
        """Start and end, in characters, of each special token of `text` that `marked` replaces."""
        stand_ins = re.finditer(r"([\U000f0000-\U000ffffd])\1*", marked)
        return [list(match.span()) for match in stand_ins if text[match.start()] != match[1]]

    def ids(self, text: str, spans: Iterable[Sequence[int]] | None) -> list[int]:
        """Token ids of a prompt with special tokens at `spans` only; None: wherever spelled."""
        if spans is None:
            return self.allowing.encode(text).ids
        for start, end in spans:
            text = text[:start] + self._stand_ins[text[start:end]] + text[end:]
        return [self._special_ids.get(i, i) for i in self.tokenizer.encode(text).ids]


def control_tokens(tokenizer: Tokenizer) -> ControlTokens:
    """The ControlTokens of a tokenizer; the last ones are kept, as copies take a second to make."""
    processor = tokenizer.post_processor
    # What can be changed in a tokenizer.
    state = (
        tuple(tokenizer.get_added_tokens_decoder()),
        None if processor is None else processor.__getstate__(),
        str((tokenizer.truncation, tokenizer.padding, tokenizer.encode_special_tokens)),
    )
    return _kept(tokenizer, state)


@lru_cache(maxsize=2)
def _kept(tokenizer: Tokenizer, state: tuple[Hashable, ...]) -> ControlTokens:
    return ControlTokens(tokenizer)


def special_token_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Matches the special tokens of a tokenizer; None if it has none."""
    tokens = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    # The longest first, as one may start with another.
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if tokens else None


def spelled_tokens(pattern: re.Pattern[str] | None, text: str) -> Counter[str]:
    """How often a text spells each special token."""
    return Counter() if pattern is None else Counter(match[0] for match in pattern.finditer(text))


def describe(spelled: Counter[str], special_tokens: SpecialTokens) -> str:
    """The warning of a text that spells special tokens."""
    names = ", ".join(f"{token} {count:,} times" for token, count in spelled.most_common())
    how = "text" if special_tokens == "text" else "special tokens"
    return f"spells special tokens ({names}), encoded as {how}"
