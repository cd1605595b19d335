"""Count tokens piece by piece: counts add up where the tokenizer splits between the pieces.

Tokenizers that split text into words before they merge characters (GPT-2, Llama 3, Qwen, ...)
never merge across a line break before a letter, nor across the space before a word. Pieces that
meet only there are counted once and added; a prompt of a million tokens costs a sum.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from needlework.tasks.prompts.prompt import PLAIN, Frame

_PROBE = "Go on.\nThe sky, at 12 noon:\nyes or-no 7.\nVAR X"
_JOINTS = ("\nThe", " sky", " at", " noon", "\nyes", " or", "\nVAR", " X")
_CHUNK_CHARACTERS = 1_000_000


class Counter:
    """Tokens of a prompt's pieces, in one tokenizer, inside one frame (chat template or none)."""

    def __init__(self, tokenizer: Tokenizer, frame: Frame = PLAIN):
        self.tokenizer, self.frame = tokenizer, frame
        self.additive = _splits_between_pieces(tokenizer)
        """Whether sums of pieces are trusted; if not, each prompt is tokenized whole."""
        special = tokenizer.encode("a").special_tokens_mask
        self.lead = next((i for i, mask in enumerate(special) if not mask), len(special))
        """Special tokens that the tokenizer puts before a text."""
        self.trail = sum(special) - self.lead
        """Special tokens that it puts behind."""
        self._line_break = self._plain("\n")
        self._words: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """Tokens of `text` where it follows a line break or begins with a space."""
        return self._plain("\n" + text) - self._line_break

    def head(self, text: str) -> int:
        """Tokens from the prompt's first to the end of `text`, which ends a line.

        Special tokens are counted.
        """
        # A letter behind: two line breaks may be one token, as they are in the prompt.
        return self.lead + self._plain(f"{self.frame.head}{text}A") - self("A")

    def tail(self, question: str, answer_prefix: str, answer: str = "") -> int:
        """Tokens from the question, on a line of its own, to the prompt's last."""
        return self(self.close(question, answer_prefix) + answer) + self.trail

    def close(self, question: str, answer_prefix: str) -> str:
        """The text after the context: the question and the answer's beginning, in the frame."""
        if self.frame.tail == "":
            return question + answer_prefix
        if not self.frame.prefills:
            return question + answer_prefix + self.frame.tail
        return question + self.frame.tail + answer_prefix.lstrip()

    def words(self, words: Sequence[str]) -> np.ndarray:
        """Tokens of each word (or sentence) with the space before it. int64, one a word."""
        known = self._words
        new = [word for word in dict.fromkeys(words) if word not in known]
        if new:
            known.update(zip(new, self.many(f" {word}" for word in new), strict=True))
        return np.fromiter(map(known.__getitem__, words), np.int64, len(words))

    def space_before(self, word: str) -> int:
        """Tokens from the space before a word to the word: 0 where one token holds both."""
        encoding = self.tokenizer.encode(f"\n {word}", add_special_tokens=False)
        return self.token_at(encoding, 2) - self.token_at(encoding, 1)

    def running(self, sentences: Sequence[str]) -> np.ndarray:
        """Tokens of each sentence with the space before it, added up over its words. int64."""
        words = [sentence.split(" ") for sentence in sentences]
        starts = np.cumsum([0, *(len(part) for part in words[:-1])])
        return np.add.reduceat(self.words([word for part in words for word in part]), starts)

    def in_order(self, sentences: Sequence[str]) -> np.ndarray:
        """Tokens of each sentence with the space before it, where it stands. int64.

        Of sentences that begin in an unusual way these add up where `running` may not.
        """
        text = "".join(f" {sentence}" for sentence in sentences)
        starts = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences[:-1])])
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = np.array([start for start, _ in encoding.offsets])
        owners = starts.searchsorted(tokens, side="right") - 1
        return np.bincount(owners, minlength=len(sentences))

    def lines(self, lines: Iterable[str]) -> np.ndarray:
        """Tokens of each line with its line break. int64, one a line."""
        return np.array(self.many(f"{line}\n" for line in lines), np.int64)

    def many(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text where it follows a line break or begins with a space."""
        texts = [f"\n{text}" for text in texts]
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding) - self._line_break for encoding in encoded]

    def first_word(self, word: str) -> int:
        """Tokens that the first word of a line has beyond those it has behind a space."""
        return self(word) - self(f" {word}")

    def line_end(self, word: str) -> int:
        """Tokens that the line break adds to the last word of a line."""
        return self(f" {word}\n") - self(f" {word}")

    def whole(self, text: str) -> int:
        """Tokens of a whole prompt, special tokens counted, by tokenizing it.

        A long one is tokenized in parts where that cannot matter, for the sake of memory.
        """
        parts, start = 0, 0
        while self.additive and len(text) - start > 2 * _CHUNK_CHARACTERS:
            stop = text.rfind(" ", start, start + _CHUNK_CHARACTERS)
            while stop > start and not (text[stop - 1].isalnum() and text[stop + 1].isalpha()):
                stop = text.rfind(" ", start, stop)
            if stop <= start:
                break
            parts += self._plain(text[start:stop])
            start = stop
        return self.lead + parts + self._plain(text[start:]) + self.trail

    def token_at(self, encoding: Encoding, character: int) -> int:
        """Index of the token that holds a character of an encoded prompt, or the next one."""
        while (token := encoding.char_to_token(character)) is None:
            character += 1
        return token

    def _plain(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


class CharacterCounter(Counter):
    """The same in characters, for lengths that are told in them. Special tokens have none."""

    def __init__(self, tokenizer: Tokenizer, frame: Frame = PLAIN):
        super().__init__(tokenizer, frame)
        self.additive, self.lead, self.trail = True, 0, 0

    def in_order(self, sentences: Sequence[str]) -> np.ndarray:
        return np.array([len(sentence) + 1 for sentence in sentences], np.int64)

    def many(self, texts: Iterable[str]) -> list[int]:
        return [len(text) for text in texts]

    def _plain(self, text: str) -> int:
        return len(text)


def _splits_between_pieces(tokenizer: Tokenizer) -> bool:
    if tokenizer.pre_tokenizer is None:
        return False
    if tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str(_PROBE) != _PROBE:
        return False
    starts = {start for _, (start, _) in tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)}
    # A piece starts at the letter after a line break, and at the space before a word.
    joints = (_PROBE.index(joint) + joint.startswith("\n") for joint in _JOINTS)
    return starts.issuperset(joints)
