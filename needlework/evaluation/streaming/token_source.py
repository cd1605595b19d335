"""Token ids from disk, document by document, never all of them in memory."""

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from needlework.sources.texts import TEXT_SUFFIXES, read_column, read_texts

TOKEN_SUFFIXES = (".bin", ".npy")
PIECE_TOKENS = 2**20
"""Most tokens of a file that are looked at together."""

Pieces = Iterator[np.ndarray]
"""A document: arrays of token ids, one after the other."""


class TokenFile:
    """Token ids in one file, mapped into memory: a one-dimensional .npy, or raw little-endian .bin.

    Only the piece that is read is mapped: pages once touched would count as memory to the end.

    Iterating gives its documents: one, or those that each end with a token `separator`, or those
    that begin at the indices `starts`.

    Args:
        path: the file.
        dtype: of a .bin file, uint16 or uint32.
        separator: id that ends each document (an end-of-text token); it belongs to the document.
        starts: index of the first token of each document, rising from 0.

    Raises:
        ValueError: there is no such file, it is empty, cut short, or holds no whole numbers.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: str = "uint16",
        separator: int | None = None,
        starts: np.ndarray | None = None,
    ):
        self.path, self.separator, self.starts = Path(path), separator, starts
        if not self.path.is_file():
            raise ValueError(f"{path}: no such file; name a token file that is there")
        size = self.path.stat().st_size
        if size == 0:
            raise ValueError(f"{path}: empty; name a file with tokens")
        if self.path.suffix == ".npy":
            try:
                ids = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise ValueError(
                    f"{path}: cut short, or no .npy file ({error}); make it again"
                ) from None
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise ValueError(
                    f"{path}: holds {ids.dtype} of shape {ids.shape}; "
                    "write token ids as whole numbers in one dimension"
                )
        else:
            item = np.dtype(f"<u{np.dtype(dtype).itemsize}")
            if size % item.itemsize:
                raise ValueError(
                    f"{path}: {size} bytes are no whole number of {dtype} tokens; it is cut "
                    "short, or of another dtype"
                )
            ids = np.memmap(self.path, item, mode="r")
        if len(ids) == 0:
            raise ValueError(f"{path}: empty; name a file with tokens")
        self._tokens, self._item, self._offset = len(ids), ids.dtype, ids.offset

    def __len__(self) -> int:
        return self._tokens

    def __iter__(self) -> Iterator[Pieces]:
        if self.starts is not None:
            edges = [*self.starts.tolist(), len(self)]
            for start, end in pairwise(edges):
                yield self.pieces(start, end)
        elif self.separator is None:
            yield self.pieces(0, len(self))
        else:
            start = 0
            for end in self._ends():
                yield self.pieces(start, end)
                start = end
            if start < len(self):
                yield self.pieces(start, len(self))

    def pieces(self, start: int, end: int) -> Pieces:
        """The tokens from index `start` to before `end`."""
        for at in range(start, end, PIECE_TOKENS):
            tokens = min(PIECE_TOKENS, end - at)
            offset = self._offset + at * self._item.itemsize
            # A page of a mapped file that has since been cut kills the process.
            if self.path.stat().st_size < offset + tokens * self._item.itemsize:
                raise ValueError(
                    f"{self.path}: has become shorter while it was read, at token {at}; "
                    "put the whole file back"
                )
            yield np.array(np.memmap(self.path, self._item, "r", offset, tokens))

    def _ends(self) -> Iterator[int]:
        at = 0
        for piece in self.pieces(0, len(self)):
            yield from (np.flatnonzero(piece == self.separator) + at + 1).tolist()
            at += len(piece)


def token_documents(
    path: str | Path,
    tokenizer: Any = None,
    *,
    column: str | None = None,
    split: str = "train",
    dtype: str = "uint16",
    separator: int | None = None,
) -> Iterator[Pieces]:
    """The documents of any source, each in pieces of token ids, read as they are asked for.

    Args:
        path: a token file (.bin, .npy) or a folder of them; else whatever `sources.texts.read_texts`
            reads: text files, tables (.parquet, .jsonl, .json, .csv), a folder that `datasets`
            saved, a hub's owner/name. A text file is one document, and so is each row of a table.
        tokenizer: for text: a `tokenizers.Tokenizer` or a fast one of transformers. What it puts
            around a text (a beginning-of-text token) begins each document.
        column: of a table; None: input_ids where there is one, else text.
        split: of a dataset that has several.
        dtype: of .bin files.
        separator: id that ends each document of a token file.

    Raises:
        ValueError: as TokenFile and `read_texts`; or there is text and no tokenizer.
    """
    path = Path(path)
    files = _files(path)
    if any(file.suffix in TOKEN_SUFFIXES for file in files):
        for file in files:
            if file.suffix in TOKEN_SUFFIXES:
                yield from TokenFile(file, dtype, separator)
        return
    plain = [file for file in files if file.suffix.lower() in TEXT_SUFFIXES]
    encode = None if tokenizer is None else encoder(tokenizer)
    if plain and len(plain) == len(files):
        for file in plain:
            yield encoded(read_texts(file), encode, file)
        return
    columns = ("input_ids", "text") if column is None else (column,)
    found = False
    for number, row in enumerate(read_column(path, columns, split)):
        if row is None or len(row) == 0:
            continue
        found = True
        yield encoded([row], encode, path) if isinstance(row, str) else _ids(row, path, number)
    if not found:
        raise ValueError(f"{path}: empty; name a source that has text or tokens")


def _files(path: Path) -> list[Path]:
    """The file, or those of a folder, hidden ones left out."""
    if not path.is_dir():
        return [path]
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [f for f in found if not any(p.startswith(".") for p in f.relative_to(path).parts)]


def encoder(tokenizer: Any) -> Tokenizer:
    """A tokenizer that cuts nothing; `tokenizer` is of `tokenizers`, or a fast one of transformers.

    Raises:
        ValueError: it is neither.
    """
    if not hasattr(tokenizer, "backend_tokenizer") and not isinstance(tokenizer, Tokenizer):
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__}; give one of tokenizers, or a fast one of "
            "transformers"
        )
    copy = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def encoded(
    parts: Iterable[str], tokenizer: Tokenizer | None, source: str | Path = "text"
) -> Pieces:
    """The token ids of one text that comes in parts; only the first begins a text.

    Raises:
        ValueError: there is no tokenizer; `source` names the text.
    """
    for number, part in enumerate(parts):
        if tokenizer is None:
            raise ValueError(f"{source}: holds text; give a tokenizer, or a source of token ids")
        yield np.array(tokenizer.encode(part, add_special_tokens=number == 0).ids, dtype=np.int64)


def _ids(row: Any, path: Path, number: int) -> Pieces:
    try:
        ids = np.asarray(row)
    except ValueError:
        ids = np.array([""])
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: row {number} holds {row!r:.40}, which is neither text nor token ids; "
            "name the column with one of them"
        )
    yield ids


def write_tokens(documents: Iterable[Iterable[np.ndarray]], path: Path, limit: int | None) -> list:
    """Write up to `limit` tokens of documents as a .npy of uint32; index of each document's first.

    Raises:
        ValueError: there are no tokens, or an id is negative or too large.
    """
    starts, total = [], 0
    raw = path.with_suffix(".raw")
    try:
        with raw.open("wb") as file:
            for document in documents:
                start = total
                for piece in document:
                    piece = piece if limit is None else piece[: limit - total]
                    if len(piece) and not 0 <= int(piece.min()) <= int(piece.max()) < 2**32:
                        wrong = piece[(piece < 0) | (piece >= 2**32)][0]
                        raise ValueError(f"token id {wrong}: is no id; make the tokens again")
                    file.write(piece.astype("<u4").tobytes())
                    total += len(piece)
                    if total == limit:
                        break
                starts += [start] if total > start else []
                if total == limit:
                    break
        if not total:
            raise ValueError(
                "no tokens: the source is empty, or has fewer documents than shards; name one that "
                "has some, or write fewer shards"
            )
        with path.open("wb") as file:
            header = {"descr": "<u4", "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(file, header)
            with raw.open("rb") as tokens:
                while block := tokens.read(2**24):
                    file.write(block)
            os.fsync(file.fileno())
    finally:
        raw.unlink(missing_ok=True)
    return starts
