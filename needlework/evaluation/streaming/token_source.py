"""Token ids from disk, document by document, without loading all of them into memory."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from needlework.evaluation.streaming.text_sizes import text_sizes
from needlework.sources.added_tokens import added_ids, reading_special_tokens_as_text
from needlework.sources.control_tokens import (
    SpecialTokens,
    describe,
    special_token_pattern,
    spelled_tokens,
)
from needlework.sources.texts import TEXT_SUFFIXES, read_column, read_texts

_log = logging.getLogger(__name__)
TOKEN_SUFFIXES = (".bin", ".npy")
PIECE_TOKENS = 2**20
"""Maximum number of tokens in a piece of a token file."""

Pieces = Iterator[np.ndarray]
"""A document as consecutive arrays of token ids."""
SizedPieces = Iterator[tuple[np.ndarray, np.ndarray | None]]
"""The same, each with the bytes and characters of its tokens [tokens, 2]; None: unknown."""


class TokenFile:
    """Token ids in a memory-mapped file: a one-dimensional .npy, or raw little-endian .bin.

    Each piece is mapped only while it is read, as mapped pages count as memory once touched.
    Iteration yields the documents; without `separator` and `starts` there is one.

    Args:
        path: the file.
        dtype: type of a .bin file, uint16 or uint32.
        separator: id that ends each document (an end-of-text token); part of the document.
        starts: index of the first token of each document, ascending from 0.

    Raises:
        ValueError: the file is missing, empty, truncated, or does not hold integers.
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
            raise ValueError(f"{path}: no such file; name an existing token file")
        size = self.path.stat().st_size
        if size == 0:
            raise ValueError(f"{path}: is empty; name a file with tokens")
        if self.path.suffix == ".npy":
            try:
                ids = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise ValueError(
                    f"{path}: is truncated or not a .npy file ({error}); make it again"
                ) from None
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise ValueError(
                    f"{path}: holds {ids.dtype} of shape {ids.shape}; "
                    "write token ids as integers in one dimension"
                )
        else:
            item = np.dtype(f"<u{np.dtype(dtype).itemsize}")
            if size % item.itemsize:
                raise ValueError(
                    f"{path}: {size} bytes are not a whole number of {dtype} tokens; the file is "
                    "truncated or has another dtype"
                )
            ids = np.memmap(self.path, item, mode="r")
        if len(ids) == 0:
            raise ValueError(f"{path}: is empty; name a file with tokens")
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
        """Yield the tokens from index `start` to `end` (exclusive)."""
        for index in range(start, end, PIECE_TOKENS):
            tokens = min(PIECE_TOKENS, end - index)
            offset = self._offset + index * self._item.itemsize
            # Reading a mapped page beyond the end of a truncated file kills the process.
            if self.path.stat().st_size < offset + tokens * self._item.itemsize:
                raise ValueError(
                    f"{self.path}: was truncated while being read, at token {index}; "
                    "restore the file"
                )
            yield np.array(np.memmap(self.path, self._item, "r", offset, tokens))

    def _ends(self) -> Iterator[int]:
        """Indices after each separator."""
        offset = 0
        for piece in self.pieces(0, len(self)):
            yield from (np.flatnonzero(piece == self.separator) + offset + 1).tolist()
            offset += len(piece)


def token_documents(
    path: str | Path,
    tokenizer: Any = None,
    *,
    column: str | None = None,
    split: str = "train",
    dtype: str = "uint16",
    separator: int | None = None,
    start_ids: list[int] | None = None,
    special_tokens: SpecialTokens = "text",
) -> Iterator[Pieces]:
    """Yield the documents of a source lazily, as pieces of token ids; see `sized_documents`."""
    documents = sized_documents(
        path,
        tokenizer,
        column=column,
        split=split,
        dtype=dtype,
        separator=separator,
        start_ids=start_ids,
        special_tokens=special_tokens,
        measure=False,
    )
    return ((ids for ids, _ in document) for document in documents)


def sized_documents(
    path: str | Path,
    tokenizer: Any = None,
    *,
    column: str | None = None,
    split: str = "train",
    dtype: str = "uint16",
    separator: int | None = None,
    start_ids: list[int] | None = None,
    special_tokens: SpecialTokens = "text",
    measure: bool = True,
) -> Iterator[SizedPieces]:
    """Yield the documents of a source lazily, each as pieces of token ids with their sizes.

    Args:
        path: a token file (.bin, .npy) or a folder of them; or a source of
            `sources.texts.read_texts`: text files, tables (.parquet, .jsonl, .json, .csv), a folder
            saved by `datasets`, or owner/name on the hub. Each text file and each row of a table
            is one document.
        tokenizer: for text: a `tokenizers.Tokenizer` or a fast tokenizer of transformers. Special
            tokens that it adds start and end each document.
        column: column of a table; None: input_ids if present, else text.
        split: split of a dataset that has several.
        dtype: type of .bin files.
        separator: id that ends each document of a token file.
        start_ids: ids that start each document, added where it does not start with them, in place
            of those that the tokenizer adds there; None: those.
        special_tokens: what text that spells a special token becomes: its characters, or the token.
        measure: whether to give the sizes of tokens that are made of text.

    Raises:
        ValueError: as TokenFile and `read_texts`; or the source is text and there is no tokenizer.
    """
    path = Path(path)
    files = _files(path)
    if any(file.suffix in TOKEN_SUFFIXES for file in files):
        for file in files:
            if file.suffix in TOKEN_SUFFIXES:
                for document in TokenFile(file, dtype, separator):
                    yield _unsized(_starting_with(start_ids or [], document))
        return
    text_files = [file for file in files if file.suffix.lower() in TEXT_SUFFIXES]
    encode = None if tokenizer is None else encoder(tokenizer, special_tokens)
    if text_files and len(text_files) == len(files):
        for file in text_files:
            yield sized(read_texts(file), encode, file, start_ids, measure)
        return
    columns = ("input_ids", "text") if column is None else (column,)
    is_empty = True
    for number, row in enumerate(read_column(path, columns, split)):
        if row is None or len(row) == 0:
            continue
        is_empty = False
        yield (
            sized([row], encode, path, start_ids, measure)
            if isinstance(row, str)
            else _unsized(_starting_with(start_ids or [], _ids_of_row(row, path, number)))
        )
    if is_empty:
        raise ValueError(f"{path}: is empty; name a source with text or tokens")


def _starting_with(ids: list[int], document: Pieces) -> Pieces:
    """The document; its first tokens are `ids`, added unless it has them."""
    head = next(document)
    if head[: len(ids)].tolist() != ids:
        yield np.array(ids, dtype=head.dtype)
    yield head
    yield from document


def _unsized(document: Pieces) -> SizedPieces:
    return ((ids, None) for ids in document)


def _files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder except hidden ones."""
    if not path.is_dir():
        return [path]
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [f for f in files if not any(p.startswith(".") for p in f.relative_to(path).parts)]


def encoder(tokenizer: Any, special_tokens: SpecialTokens = "text") -> Tokenizer:
    """Return a copy of a tokenizer without truncation and padding.

    Args:
        special_tokens: as for `token_documents`.

    Raises:
        ValueError: it is neither of `tokenizers` nor a fast one of transformers.
    """
    if not hasattr(tokenizer, "backend_tokenizer") and not isinstance(tokenizer, Tokenizer):
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} is not supported; pass a tokenizers.Tokenizer "
            "or a fast tokenizer of transformers"
        )
    copy = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
    copy.no_truncation()
    copy.no_padding()
    return reading_special_tokens_as_text(copy) if special_tokens == "text" else copy


def encoded(
    parts: Iterable[str],
    tokenizer: Tokenizer | None,
    source: str | Path = "text",
    start_ids: list[int] | None = None,
) -> Pieces:
    """Yield the token ids of one text that comes in parts; see `sized`."""
    return (ids for ids, _ in sized(parts, tokenizer, source, start_ids, measure=False))


def sized(
    parts: Iterable[str],
    tokenizer: Tokenizer | None,
    source: str | Path = "text",
    start_ids: list[int] | None = None,
    measure: bool = True,
) -> SizedPieces:
    """Yield the token ids of one text that comes in parts, each with the sizes of its tokens.

    Special tokens that the tokenizer adds stand only at the text's own start and end; `start_ids`
    replaces those at its start. They have no bytes and characters.

    Args:
        measure: whether to give sizes, or None in their place.

    Raises:
        ValueError: there is no tokenizer; the message names `source`.
    """
    appended: list[int] = []
    spelled: Counter[str] = Counter()
    pattern = None if tokenizer is None else special_token_pattern(tokenizer)
    for number, part in enumerate(parts):
        if tokenizer is None:
            raise ValueError(
                f"{source}: holds text; pass a tokenizer, or name a source of token ids"
            )
        spelled.update(spelled_tokens(pattern, part))
        encoding = tokenizer.encode(part, add_special_tokens=False)
        ids = encoding.ids
        sizes = text_sizes(part, encoding, tokenizer) if measure else None
        if number == 0:
            prepended, appended = added_ids(tokenizer)
            prepended = prepended if start_ids is None else start_ids
            ids = prepended + ids
            sizes = sizes if sizes is None else np.pad(sizes, ((len(prepended), 0), (0, 0)))
        yield np.array(ids, dtype=np.int64), sizes
    if tokenizer is not None and spelled:
        how: SpecialTokens = "text" if tokenizer.encode_special_tokens else "allow"
        _log.warning("%s: %s", source, describe(spelled, how))
    if appended:
        no_sizes = np.zeros((len(appended), 2), np.uint32) if measure else None
        yield np.array(appended, dtype=np.int64), no_sizes


def _ids_of_row(row: Any, path: Path, number: int) -> Pieces:
    try:
        ids = np.asarray(row)
    except ValueError:
        ids = np.array([""])
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: row {number} holds {row!r:.40}, which is neither text nor token ids; "
            "name another column"
        )
    yield ids


def write_tokens(
    documents: Iterable[Pieces | SizedPieces],
    path: Path,
    limit: int | None,
    sizes_path: Path | None = None,
) -> list[int]:
    """Write up to `limit` tokens of documents to a .npy file of uint32.

    Args:
        sizes_path: .npy file of uint32 [tokens, 2] for the sizes of the tokens, without rows if
            those of a token are unknown.

    Returns:
        index of the first token of each document.

    Raises:
        ValueError: there are no tokens, or an id is negative or too large.
    """
    starts, total, is_measured = [], 0, True
    with _Rows(path) as tokens, _Rows(sizes_path or path.with_suffix(".sizes"), 2) as all_sizes:
        for document in documents:
            start = total
            for piece in document:
                ids, sizes = piece if isinstance(piece, tuple) else (piece, None)
                ids = ids if limit is None else ids[: limit - total]
                if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < 2**32:
                    invalid = ids[(ids < 0) | (ids >= 2**32)][0]
                    raise ValueError(f"token id {invalid}: is out of range; make the tokens again")
                tokens.add(ids)
                is_measured &= sizes is not None
                if sizes is not None and sizes_path is not None:
                    all_sizes.add(sizes[: len(ids)])
                total += len(ids)
                if total == limit:
                    break
            starts += [start] if total > start else []
            if total == limit:
                break
        if not total:
            raise ValueError(
                "no tokens: the source is empty, or has fewer documents than shards; name another "
                "source, or write fewer shards"
            )
        tokens.save(total)
        if sizes_path is not None:
            all_sizes.save(total if is_measured else 0)
    return starts


class _Rows:
    """Rows of numbers on their way to a .npy file of uint32, which states their count first."""

    def __init__(self, path: Path, columns: int | None = None):
        self._path, self._columns = path, columns
        self._raw = path.with_suffix(".raw") if columns is None else path.with_suffix(".raw2")

    def __enter__(self) -> Self:
        self._file = self._raw.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.unlink(missing_ok=True)

    def add(self, rows: np.ndarray) -> None:
        self._file.write(rows.astype("<u4").tobytes())

    def save(self, count: int) -> None:
        """Write the file with the first `count` rows."""
        self._file.close()
        shape = (count,) if self._columns is None else (count, self._columns)
        left = 4 * count * (self._columns or 1)
        with self._path.open("wb") as file:
            header = {"descr": "<u4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            with self._raw.open("rb") as rows:
                while left and (block := rows.read(min(left, 2**24))):
                    file.write(block)
                    left -= len(block)
            os.fsync(file.fileno())
