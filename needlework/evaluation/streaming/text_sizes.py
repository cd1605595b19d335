"""Bytes and characters of the text behind each token, for bits per byte and per character."""

import re

import numpy as np
from tokenizers import Encoding, Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def text_sizes(text: str, encoding: Encoding, tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes and characters of `text` behind each token, uint32 [tokens, 2].

    They add up to those of the text. A character in several tokens belongs to the last of them, its
    bytes to the tokens that hold them, if these are bytes (byte-level BPE, byte fallback), and else
    to the last too. Text that the tokenizer drops belongs to the token after it.
    """
    if not len(encoding):
        return np.zeros((0, 2), np.uint32)
    starts, ends = np.array(encoding.offsets, np.int64).T
    is_empty = starts == ends
    ends = np.maximum.accumulate(ends)
    starts = np.where(is_empty, ends, starts)
    following = np.append(starts[1:], len(text))
    complete = np.maximum.accumulate(np.minimum(ends, following))
    complete[-1] = len(text)
    characters = np.diff(complete, prepend=0)
    offsets = _byte_offsets(text)
    read = offsets[complete]
    parts = (tokenizer.pre_tokenizer, tokenizer.decoder)
    is_byte_level = any(part and b'"ByteLevel"' in part.__getstate__() for part in parts)
    tokens = encoding.tokens
    for i in np.flatnonzero(following < ends).tolist():
        size = 1 if _BYTE_TOKEN.fullmatch(tokens[i]) else len(tokens[i]) if is_byte_level else 0
        position = (int(read[i - 1]) if i else 0) + size
        if offsets[complete[i]] <= position < offsets[complete[i] + 1]:
            read[i] = position
    return np.stack([np.diff(read, prepend=0), characters], 1).astype(np.uint32)


def chunk_sizes(
    sizes: np.ndarray, starts: np.ndarray | int, first_tokens: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """Bytes and characters of the scored tokens of each chunk, int64 [chunks, 2].

    Args:
        sizes: of each token of the text, [tokens, 2].
        starts: index in the text at which the document of each chunk begins.
        first_tokens: position in its document of the first scored token of each chunk.
        tokens: number of scored tokens of each chunk.
    """
    begins = (starts + first_tokens).astype(np.int64).tolist()
    ranges = zip(begins, tokens.astype(np.int64).tolist(), strict=True)
    sums = [sizes[begin : begin + count].sum(0, dtype=np.int64) for begin, count in ranges]
    return np.array(sums, np.int64).reshape(-1, 2)


def _byte_offsets(text: str) -> np.ndarray:
    """UTF-8 bytes before each character, and of the whole text. int64 [characters + 1]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800).astype(np.int64) + (points >= 0x10000)
    return np.concatenate([[0], widths.cumsum()])
