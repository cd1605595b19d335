"""Count tokens piece by piece: counts add up where the tokenizer splits between the pieces.

Tokenizers that split text into words before merging characters (GPT-2, Llama 3, Qwen, ...) never
merge across a line break before a letter or across the space before a word. Pieces that meet only
there are counted once and summed, so a prompt of a million tokens costs an addition.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from needlework.sources.added_tokens import added_ids
from needlework.sources.control_tokens import ControlTokens, SpecialTokens, control_tokens
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, ChatFrame, Parts, Prompt

_PROBE = "Go on.\nThe sky, at 12 noon:\nyes or-no 7.\nVAR X"
_BOUNDARIES = ("\nThe", " sky", " at", " noon", "\nyes", " or", "\nVAR", " X")
_CHUNK_CHARACTERS = 1_000_000


class TokenCounter:
    """Counts the tokens of prompt pieces for one tokenizer and one chat template (or none).

    Args:
        tokenizer: the model's.
        chat_frame: the chat template; its special tokens count as tokens.
        special_tokens: what special tokens in other text count as.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_frame: ChatFrame = NO_CHAT_FRAME,
        special_tokens: SpecialTokens = "text",
    ):
        self._control = control_tokens(tokenizer)
        is_text = special_tokens == "text"
        self.tokenizer = self._control.tokenizer if is_text else self._control.allowing
        self.chat_frame = chat_frame
        self._frame = _marked(chat_frame, self._control) if is_text else chat_frame
        self.additive = _splits_between_pieces(tokenizer)
        """Whether counts of pieces add up. If not, every prompt is tokenized whole."""
        self.leading_specials = len(added_ids(self.tokenizer)[0])
        """Special tokens that the tokenizer adds before a text."""
        self._line_break = self._encoded_length("\n")
        self._words: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """Tokens of `text` that starts with a space or follows a line break."""
        return self._encoded_length("\n" + text) - self._line_break

    def count_head(self, text: str) -> int:
        """Tokens from the start of the prompt to the end of `text`, which ends a line.

        Special tokens and the chat template count.
        """
        # The letter keeps two line breaks from merging: in the prompt, text follows them too.
        text = f"{self._frame.head}{text}A"
        return self.leading_specials + self._encoded_length(text) - self("A")

    def count_tail(self, question: str, answer_prefix: str, answer: str = "") -> int:
        """Tokens from the question, which starts a line, to the end of the prompt."""
        return self(self._frame.closing_text(question, answer_prefix) + answer)

    def count_words(self, words: Sequence[str]) -> np.ndarray:
        """Tokens of each word (or sentence) with the space before it. int64 [words]."""
        known = self._words
        new = [word for word in dict.fromkeys(words) if word not in known]
        if new:
            known.update(zip(new, self.count_batch(f" {word}" for word in new), strict=True))
        return np.fromiter(map(known.__getitem__, words), np.int64, len(words))

    def count_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Tokens of each sentence with the space before it, summed over its words.

        int64 [sentences].
        """
        words = [sentence.split(" ") for sentence in sentences]
        starts = np.cumsum([0, *(len(part) for part in words[:-1])])
        return np.add.reduceat(self.count_words([word for part in words for word in part]), starts)

    def count_in_place(self, sentences: Sequence[str]) -> np.ndarray:
        """Tokens of each sentence with the space before it, tokenized as one running text.

        Exact also for sentences with unusual beginnings, where `count_sentences` may be off.
        int64 [sentences].
        """
        text = "".join(f" {sentence}" for sentence in sentences)
        starts = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences[:-1])])
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = np.array([start for start, _ in encoding.offsets])
        owners = starts.searchsorted(tokens, side="right") - 1
        return np.bincount(owners, minlength=len(sentences))

    def count_lines(self, lines: Iterable[str]) -> np.ndarray:
        """Tokens of each line with its line break. int64 [lines]."""
        return np.array(self.count_batch(f"{line}\n" for line in lines), np.int64)

    def count_batch(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text that starts with a space or follows a line break."""
        texts = [f"\n{text}" for text in texts]
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding) - self._line_break for encoding in encoded]

    def line_start_cost(self, word: str) -> int:
        """Extra tokens of `word` at the start of a line, compared to after a space."""
        return self(word) - self(f" {word}")

    def line_end_cost(self, word: str) -> int:
        """Extra tokens of the line break after `word`."""
        return self(f" {word}\n") - self(f" {word}")

    def space_cost(self, word: str) -> int:
        """Tokens of the space before `word`: 0 if one token holds the space and the word."""
        encoding = self.tokenizer.encode(f"\n {word}", add_special_tokens=False)
        return self.token_at(encoding, 2) - self.token_at(encoding, 1)

    def control_spans(self, prompt: Prompt) -> list[list[int]] | None:
        """Start and end, in characters, of special tokens in the prompt; None: all that it has."""
        if self.tokenizer is self._control.allowing:
            return None
        return self._control.spans(self.chat_frame.text(prompt), self._frame.text(prompt))

    def spelled(self, prompt: Prompt) -> Counter[str]:
        """How often the prompt's text, chat template apart, spells each special token."""
        system = self.chat_frame.system_prompt or ""
        history = (message.content for message in prompt.history)
        texts = (system, *history, prompt.context, prompt.question, prompt.answer_prefix)
        return sum(map(self._control.spelled, texts), Counter())

    def encode_prompt(self, prompt: Prompt) -> Encoding:
        """The prompt's tokens and their offsets; ids of the chat template's tokens are not real."""
        return self.tokenizer.encode(self._frame.text(prompt))

    def count_prompt(self, prompt: Prompt, answer: str = "") -> int:
        """Tokens of a whole prompt with `answer` appended, special tokens included."""
        return self.count_whole(self._frame.text(prompt) + answer)

    def count_whole(self, text: str) -> int:
        """Tokens of a whole text, special tokens before it included, by tokenizing it.

        Long texts are tokenized in chunks at safe boundaries, which bounds memory.
        """
        chunks, start = 0, 0
        while self.additive and len(text) - start > 2 * _CHUNK_CHARACTERS:
            stop = text.rfind(" ", start, start + _CHUNK_CHARACTERS)
            while stop > start and not (text[stop - 1].isalnum() and text[stop + 1].isalpha()):
                stop = text.rfind(" ", start, stop)
            if stop <= start:
                break
            chunks += self._encoded_length(text[start:stop])
            start = stop
        rest = self._encoded_length(text[start:])
        return self.leading_specials + chunks + rest

    def token_at(self, encoding: Encoding, character: int) -> int:
        """Index of the token that holds `character`, or of the next token."""
        while (token := encoding.char_to_token(character)) is None:
            character += 1
        return token

    def _encoded_length(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


class CharacterCounter(TokenCounter):
    """Counts characters instead of tokens. Special tokens count as zero."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_frame: ChatFrame = NO_CHAT_FRAME,
        special_tokens: SpecialTokens = "text",
    ):
        super().__init__(tokenizer, chat_frame, special_tokens)
        self.additive, self.leading_specials = True, 0

    def count_in_place(self, sentences: Sequence[str]) -> np.ndarray:
        return np.array([len(sentence) + 1 for sentence in sentences], np.int64)

    def count_batch(self, texts: Iterable[str]) -> list[int]:
        return [len(text) for text in texts]

    def _encoded_length(self, text: str) -> int:
        return len(text)


def _marked(frame: ChatFrame, control: ControlTokens) -> ChatFrame:
    """The frame with stand-ins for special tokens, except for those in the system prompt."""
    head = control.mark(frame.head, (frame.system_prompt or "").strip())

    def parts_of(roles: tuple[str, ...]) -> Parts:
        parts = frame.parts_of(roles) if frame.parts_of else ()
        return tuple(control.mark(part) if isinstance(part, str) else part for part in parts)

    return frame._replace(
        head=head, tail=control.mark(frame.tail), parts_of=frame.parts_of and parts_of
    )


def _splits_between_pieces(tokenizer: Tokenizer) -> bool:
    if tokenizer.pre_tokenizer is None:
        return False
    if tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str(_PROBE) != _PROBE:
        return False
    starts = {start for _, (start, _) in tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)}
    # A piece starts at the letter after a line break, and at the space before a word.
    expected = (_PROBE.index(text) + text.startswith("\n") for text in _BOUNDARIES)
    return starts.issuperset(expected)
