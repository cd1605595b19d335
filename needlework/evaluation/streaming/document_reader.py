"""Documents from any data, and a reader that looks ahead in one of them."""

from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from needlework.evaluation.streaming.token_source import (
    PIECE_TOKENS,
    TOKEN_SUFFIXES,
    Pieces,
    TokenFile,
    encoded,
    encoder,
    token_documents,
)


class DocumentReader:
    """Reads one document forward and holds only the tokens that are peeked at.

    Args:
        pieces: arrays of token ids.
        vocabulary: number of ids that the model accepts; None: unknown.
    """

    def __init__(self, pieces: Iterable[np.ndarray], vocabulary: int | None):
        self._pieces, self._vocabulary = iter(pieces), vocabulary
        self._buffer = np.empty(0, dtype=np.int64)
        self.position = 0
        """Index in the document of the next token."""
        self.first = int(head[0]) if len(head := self.peek_unchecked(1)) else -1
        """The document's first token; -1 if it has none."""

    def peek(self, tokens: int) -> np.ndarray:
        """Return the next `tokens` tokens, int64; fewer at the end of the document.

        Raises:
            ValueError: an id is outside the model's vocabulary.
        """
        ids = self.peek_unchecked(tokens)
        if self._vocabulary is not None and len(ids):
            is_invalid = (ids < 0) | (ids >= self._vocabulary)
            if is_invalid.any():
                i = int(is_invalid.argmax())
                raise ValueError(
                    f"token {self.position + i}: id {ids[i]} is outside the model's vocabulary of "
                    f"{self._vocabulary}; make the tokens with the model's own tokenizer"
                )
        return ids

    def peek_unchecked(self, tokens: int) -> np.ndarray:
        """As `peek`, without checking the ids."""
        while len(self._buffer) < tokens and (piece := next(self._pieces, None)) is not None:
            self._buffer = np.concatenate([self._buffer, np.asarray(piece)])
        return self._buffer[:tokens].astype(np.int64)

    def advance(self, tokens: int) -> None:
        """Move forward by `tokens` tokens."""
        self.position += tokens
        while len(self._buffer) < tokens and (piece := next(self._pieces, None)) is not None:
            tokens -= len(self._buffer)
            self._buffer = np.asarray(piece)
        self._buffer = self._buffer[tokens:]


def documents_of(
    data: Any, join: bool, limit: int | None, tokenizer: Any = None
) -> Iterator[Pieces]:
    """Yield the documents of any data, each as an iterator of pieces.

    Args:
        data: token ids as a tensor, array or list ([n], or one document per row); the path of a
            token file, or of a source that `token_documents` reads; or documents: arrays, iterators
            of arrays to join, texts, or rows with input_ids or text.
        join: join all documents into one.
        limit: maximum number of tokens in all; None: unlimited.
        tokenizer: for text.

    Raises:
        ValueError: the data is none of these, or empty.
    """
    documents = _documents(data, tokenizer)
    if join:
        documents = iter([(piece for document in documents for piece in document)])
    for document in documents:
        if limit is None:
            yield document
        else:
            limited = _Limited(document, limit)
            yield iter(limited)
            if (limit := limited.remaining) <= 0:
                return


def known_token_count(data: Any, limit: int | None) -> int | None:
    """Number of tokens in `data`, at most `limit`; None if unknown."""
    is_ids = isinstance(data, Tensor | np.ndarray | TokenFile) or _is_list_of_ids(data)
    count = len(data) if is_ids and len(getattr(data, "shape", (1,))) == 1 else None
    return min((x for x in (count, limit) if x is not None), default=None)


class _Limited:
    """The first tokens of a document, at most `remaining`."""

    def __init__(self, pieces: Pieces, remaining: int):
        self._pieces, self.remaining = pieces, remaining

    def __iter__(self) -> Pieces:
        if self.remaining <= 0:
            return
        for piece in self._pieces:
            head = piece[: self.remaining]
            self.remaining -= len(head)
            yield head
            if self.remaining <= 0:
                return


def _is_list_of_ids(data: Any) -> bool:
    return isinstance(data, list | tuple | range) and all(isinstance(x, Integral) for x in data)


def _documents(data: Any, tokenizer: Any) -> Iterator[Pieces]:
    if hasattr(data, "__fspath__") or isinstance(data, str):
        yield from token_documents(data, tokenizer)
        return
    if isinstance(data, Mapping):
        # The output of a transformers tokenizer.
        data = _ids_or_text(data)
    if _is_list_of_ids(data) or (isinstance(data, Tensor | np.ndarray) and data.ndim == 1):
        data = [data]
    if not isinstance(data, Iterable):
        raise ValueError(
            f"data: {type(data).__name__} does not hold tokens; pass token ids, documents, or a "
            f"path that ends in one of {', '.join((*TOKEN_SUFFIXES, '.parquet'))}"
        )
    encode = None if tokenizer is None else encoder(tokenizer)
    is_empty = True
    for document in data:
        is_empty = False
        document = _ids_or_text(document) if isinstance(document, Mapping) else document
        if isinstance(document, str):
            yield encoded([document], encode, "data")
        else:
            yield document if isinstance(document, Iterator) else _pieces_of(document)
    if is_empty:
        raise ValueError("data: is empty; pass at least two tokens")


def _ids_or_text(row: Mapping[str, Any]) -> Any:
    """Return the ids or the text of a row.

    Raises:
        ValueError: the row has neither.
    """
    for column in ("input_ids", "text"):
        if column in row:
            return row[column]
    raise ValueError(
        f"data: has neither input_ids nor text, but {', '.join(map(str, row))}; rename the column "
        "that holds one of them"
    )


def _pieces_of(ids: Any) -> Pieces:
    array = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asanyarray(ids)
    if array.size == 0:
        raise ValueError("data: is empty; pass at least two tokens")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"data: {array.dtype} of shape {array.shape}; pass token ids, integers in one dimension"
        )
    return (array[start : start + PIECE_TOKENS] for start in range(0, len(array), PIECE_TOKENS))
