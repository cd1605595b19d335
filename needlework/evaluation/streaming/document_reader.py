"""A document read forward: tokens ahead can be seen before they are passed."""

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


class Reader:
    """Tokens of one document, of which only those asked for are held.

    Args:
        pieces: arrays of token ids.
        vocabulary: number of ids that the model knows; None: not told.
    """

    def __init__(self, pieces: Iterable[np.ndarray], vocabulary: int | None):
        self._pieces, self._vocabulary = iter(pieces), vocabulary
        self._held = np.empty(0, dtype=np.int64)
        self.at = 0
        """Index in the document of the next token."""

    def ahead(self, tokens: int) -> np.ndarray:
        """The next `tokens` tokens, int64; fewer where the document ends.

        Raises:
            ValueError: an id is none of the model's.
        """
        found = self.unchecked(tokens)
        if self._vocabulary is not None and len(found):
            wrong = (found < 0) | (found >= self._vocabulary)
            if wrong.any():
                i = int(wrong.argmax())
                raise ValueError(
                    f"token {self.at + i}: id {found[i]} is not below the model's vocabulary of "
                    f"{self._vocabulary}; make the tokens with the model's own tokenizer"
                )
        return found

    def unchecked(self, tokens: int) -> np.ndarray:
        """As `ahead`, whatever the ids are."""
        while len(self._held) < tokens and (piece := next(self._pieces, None)) is not None:
            self._held = np.concatenate([self._held, np.asarray(piece)])
        return self._held[:tokens].astype(np.int64)

    def pass_by(self, tokens: int) -> None:
        """Go on by `tokens` tokens, seen or not."""
        self.at += tokens
        while len(self._held) < tokens and (piece := next(self._pieces, None)) is not None:
            tokens -= len(self._held)
            self._held = np.asarray(piece)
        self._held = self._held[tokens:]


def documents_of(
    data: Any, together: bool, limit: int | None, tokenizer: Any = None
) -> Iterator[Pieces]:
    """Documents, each in pieces, of whatever a text may be given as.

    Args:
        data: token ids as a tensor, array or list ([n], or a document a row); a path of a token
            file, or of what `token_documents` reads; or documents: each an array, arrays to be
            joined, a text, or a row with input_ids or text.
        together: join all documents to one.
        limit: most tokens in all; None: no limit.
        tokenizer: for text.

    Raises:
        ValueError: it is none of these, or empty.
    """
    documents = _documents(data, tokenizer)
    if together:
        documents = iter([(piece for document in documents for piece in document)])
    for document in documents:
        if limit is None:
            yield document
        else:
            cut = _Cut(document, limit)
            yield iter(cut)
            if (limit := cut.left) <= 0:
                return


def tokens_in(data: Any, limit: int | None) -> int | None:
    """How many tokens `data` is known to hold, up to `limit`; None: nobody knows."""
    is_ids = isinstance(data, Tensor | np.ndarray | TokenFile) or _is_list_of_ids(data)
    held = len(data) if is_ids and len(getattr(data, "shape", (1,))) == 1 else None
    return min((x for x in (held, limit) if x is not None), default=None)


class _Cut:
    """A document up to `left` tokens."""

    def __init__(self, pieces: Pieces, left: int):
        self._pieces, self.left = pieces, left

    def __iter__(self) -> Pieces:
        if self.left <= 0:
            return
        for piece in self._pieces:
            taken = piece[: self.left]
            self.left -= len(taken)
            yield taken
            if self.left <= 0:
                return


def _is_list_of_ids(data: Any) -> bool:
    return isinstance(data, list | tuple | range) and all(isinstance(x, Integral) for x in data)


def _documents(data: Any, tokenizer: Any) -> Iterator[Pieces]:
    if hasattr(data, "__fspath__") or isinstance(data, str):
        yield from token_documents(data, tokenizer)
        return
    if isinstance(data, Mapping):
        # What a tokenizer of transformers returns.
        data = _held(data)
    if _is_list_of_ids(data) or (isinstance(data, Tensor | np.ndarray) and data.ndim == 1):
        data = [data]
    if not isinstance(data, Iterable):
        raise ValueError(
            f"data: {type(data).__name__} holds no tokens; give token ids, documents of them, or "
            f"a path that ends in one of {', '.join((*TOKEN_SUFFIXES, '.parquet'))}"
        )
    encode = None if tokenizer is None else encoder(tokenizer)
    found = False
    for document in data:
        found = True
        document = _held(document) if isinstance(document, Mapping) else document
        if isinstance(document, str):
            yield encoded([document], encode, "data")
        else:
            yield document if isinstance(document, Iterator) else _ids(document)
    if not found:
        raise ValueError("data: empty; give at least two tokens")


def _held(row: Mapping) -> Any:
    """
    Raises:
        ValueError: there are neither ids nor text in it.
    """
    for column in ("input_ids", "text"):
        if column in row:
            return row[column]
    raise ValueError(
        f"data: has neither input_ids nor text, but {', '.join(map(str, row))}; rename the column "
        "that holds one of them"
    )


def _ids(ids: Any) -> Pieces:
    array = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asanyarray(ids)
    if array.size == 0:
        raise ValueError("data: empty; give at least two tokens")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"data: {array.dtype} of shape {array.shape}; give token ids, whole numbers in one "
            "dimension"
        )
    return (array[at : at + PIECE_TOKENS] for at in range(0, len(array), PIECE_TOKENS))
