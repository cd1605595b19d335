"""Read texts from plain files, tables, saved datasets, or datasets of the hub."""

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pyarrow.parquet import ParquetFile

from needlework.config.paths import is_hub_name
from needlework.sources import hub

TEXT_SUFFIXES = (".txt", ".md")
TABLES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""The format's name in `datasets`, by file suffix."""
_PLAIN_TABLES = (".jsonl", ".json", ".csv")
_METADATA_FILES = ("dataset_infos.json", "dataset_info.json")
_PART_BYTES = 4 * 2**20


def read_texts(path: str | Path, column: str = "text", split: str = "train") -> Iterator[str]:
    """Read the texts of a source lazily, always in the same order.

    A text file of more than 4 MiB comes in parts that end at paragraph boundaries. Blank texts are
    skipped.

    Args:
        path: a .txt or .md file, or a folder of them (sorted by path, hidden files skipped); a
            .parquet, .jsonl, .json or .csv file, or a folder of one of these kinds; a folder saved
            by `datasets`; or, if there is no such path, owner/name of a hub dataset.
        column: the column with the text, for tables.
        split: the split, for datasets with several.

    Raises:
        ValueError: the source is missing, empty, not UTF-8 or unreadable; the column or split does
            not exist; the column holds no text.
    """
    any_text = False
    for number, text in enumerate(read_column(path, (column,), split)):
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{path}: column {column!r} is not text: row {number} holds {text!r:.40}; "
                "write the name of the column with the text"
            )
        if text and not text.isspace():
            any_text = True
            yield text
    if not any_text:
        raise ValueError(f"{path}: contains no text; write the path of a source that does")


def read_column(path: str | Path, columns: Sequence[str], split: str = "train") -> Iterator[Any]:
    """Read the first of `columns` that a source has; values can have any type. See `read_texts`."""
    return _read(Path(path), _Columns(columns), split)


def read_documents(
    path: str | Path, column: str = "text", split: str = "train"
) -> Iterator[Iterator[str]]:
    """Read the documents of a source, each as its parts: a text file, or a row of a table.

    Arguments and errors as in `read_texts`, but text files may be empty.
    """
    path = Path(path)
    files = [path] if path.is_file() else _visible_files(path)
    if files and all(file.suffix.lower() in TEXT_SUFFIXES for file in files):
        return map(_file_parts, files)
    return (iter([text]) for text in read_texts(path, column, split))


def read_pairs(
    path: str | Path, columns: tuple[str, str], split: str = "train"
) -> Iterator[tuple[str, str]]:
    """Read two columns of a table, row by row.

    Raises:
        ValueError: see `read_texts`; a column does not exist, or holds a blank or non-text value.
    """
    both = _Columns(columns, together=True)
    for number, row in enumerate(_read(Path(path), both, split)):
        for column, text in zip(columns, row, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"{path}: column {column!r}: row {number} holds {text!r:.40}; write some text, "
                    "or the name of another column"
                )
        yield row


class _Columns(NamedTuple):
    """Columns to read: the first of `names` that exists, or all of them together."""

    names: Sequence[str]
    together: bool = False

    def select(self, path: Path, available: Iterable[str]) -> list[str]:
        """The names to read among those available."""
        existing = [name for name in self.names if name in available]
        missing = [name for name in self.names if name not in available]
        if missing if self.together else not existing:
            raise _SourceError(
                f"{path}: no column {' or '.join(map(repr, missing))}; "
                f"write one of {', '.join(available)}"
            )
        return existing if self.together else existing[:1]


def _read(path: Path, columns: _Columns, split: str) -> Iterator[Any]:
    if path.is_file():
        return _read_file(path, columns)
    if path.is_dir():
        return _read_folder(path, columns, split)
    if is_hub_name(str(path)):
        return _read_hub(path, columns, split)
    raise ValueError(f"{path}: no such file or folder; write the path of an existing one")


def _read_file(path: Path, columns: _Columns) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return _read_plain(path, [path], columns)
    if suffix not in TABLES:
        raise ValueError(
            f"{path}: neither a text nor a table; write the path of a file that ends in one of "
            + ", ".join([*TEXT_SUFFIXES, *TABLES])
        )
    # A single file has one split, whatever its name.
    return _read_tables(path, [path], columns, None)


def _read_folder(path: Path, columns: _Columns, split: str) -> Iterator[Any]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_saved(path, columns, split)
    files = _visible_files(path)
    plain = [file for file in files if file.suffix.lower() in TEXT_SUFFIXES]
    tables = [f for f in files if f.suffix.lower() in TABLES and f.name not in _METADATA_FILES]
    # A README next to tables is not one of the texts.
    if tables and all(file.suffix.lower() == ".md" for file in plain):
        plain = []
    kinds: dict[str, Path] = {}
    for file in [*plain, *tables]:
        suffix = file.suffix.lower()
        kinds.setdefault("text" if suffix in TEXT_SUFFIXES else suffix, file)
    if not kinds:
        raise ValueError(
            f"{path}: a folder without texts; add files that end in one of "
            + ", ".join([*TEXT_SUFFIXES, *TABLES])
        )
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        raise ValueError(
            f"{path}: has files of several kinds, such as {first.name} and {second.name};"
            " write the path of one file, or of a folder with one kind"
        )
    if plain:
        return _read_plain(path, plain, columns)
    return _read_tables(path, tables, columns, split)


def _visible_files(path: Path) -> list[Path]:
    """The files of a folder sorted by path, without hidden ones."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [f for f in files if not any(p.startswith(".") for p in f.relative_to(path).parts)]


def _read_plain(path: Path, files: list[Path], columns: _Columns) -> Iterator[str]:
    if columns.together:
        raise ValueError(
            f"{path}: plain text; write the path of a table with columns "
            f"{' and '.join(columns.names)}"
        )
    return (part for file in files for part in _file_parts(file))


def _file_parts(file: Path) -> Iterator[str]:
    """A UTF-8 file's text; a long one is cut after a paragraph, or else a line, or else a word."""
    decoder, text, bytes_read = codecs.getincrementaldecoder("utf-8")(), "", 0
    with file.open("rb") as stream:
        while True:
            chunk = stream.read(_PART_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text += decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file}: not UTF-8 at byte {bytes_read - pending + error.start}; save it as "
                    "UTF-8"
                ) from None
            if bytes_read == 0:
                text = text.removeprefix("\ufeff")
            bytes_read += len(chunk)
            if not chunk:
                break
            if len(chunk) == _PART_BYTES:
                paragraph_end = max(text.rfind("\n\n"), text.rfind("\n\r\n"))
                ends = (paragraph_end, text.rfind("\n"), text.rfind(" "))
                end = next((end for end in ends if end > 0), 0)
                yield text[:end]
                text = text[end:]
    yield text


def _datasets() -> Any:
    """The `datasets` library, which takes a second to import."""
    import datasets

    # Otherwise it reports every local folder that is opened to the hub.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


def _read_tables(
    path: Path, files: list[Path], columns: _Columns, split: str | None
) -> Iterator[Any]:
    """Read a table or a folder of them; `split` is None for a single file."""
    if not any(file.stat().st_size for file in files):
        raise ValueError(f"{path}: empty; write the path of a source with text")
    kind = TABLES[files[0].suffix.lower()]
    with TemporaryDirectory() as cache:
        try:
            source = {"path": str(path), "cache_dir": cache}
            if path.is_file():
                source = {"path": kind, "data_files": str(path), "cache_dir": cache}
            if kind == "parquet":
                splits = _datasets().load_dataset_builder(**source).config.data_files
            else:
                splits = _datasets().load_dataset(**source, streaming=True)
            selected = _select_split(path, splits, next(iter(splits)) if split is None else split)
            read = _parquet_rows if kind == "parquet" else _dataset_rows
            yield from read(path, selected, columns)
        except _SourceError:
            raise
        except Exception as error:  # every format has its own errors
            # Report text that is not UTF-8 as such.
            for file in files:
                if file.suffix.lower() in _PLAIN_TABLES:
                    for _ in _file_parts(file):
                        pass
            raise ValueError(f"{path}: cannot be read as {kind}: {_first_line(error)}") from None


def _read_saved(path: Path, columns: _Columns, split: str) -> Iterator[Any]:
    datasets = _datasets()
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # files may be missing or truncated
        raise ValueError(
            f"{path}: cannot be read as a saved dataset: {_first_line(error)}"
        ) from None
    if isinstance(dataset, datasets.DatasetDict):
        dataset = _select_split(path, dataset, split)
    yield from _dataset_rows(path, dataset, columns)


def _read_hub(path: Path, columns: _Columns, split: str) -> Iterator[Any]:
    unreachable = hub.unreachable()
    try:
        splits = _datasets().load_dataset(str(path), streaming=True)
        yield from _dataset_rows(path, _select_split(path, splits, split), columns)
    except _SourceError:
        raise
    except Exception as error:  # network errors have many types
        raise ValueError(
            f"{path}: no such folder, and the hub does not provide it: "
            f"{unreachable or _first_line(error)}; write an existing name, or fetch it on a "
            "machine with network access"
        ) from None


class _SourceError(ValueError):
    """An error of this module, as opposed to one of the readers."""


def _select_split(path: Path, splits: Mapping[str, Any], split: str) -> Any:
    if split not in splits:
        raise _SourceError(f"{path}: no split {split!r}; write one of {', '.join(splits)}")
    return splits[split]


def _parquet_rows(path: Path, files: Sequence[str], columns: _Columns) -> Iterator[Any]:
    """Like `_dataset_rows`, for Parquet files.

    The reader of `datasets` reads ahead in threads: it holds far more than needed, and aborts a
    process that ends before the last row.
    """
    for file in files:
        with ParquetFile(file) as table:
            names = columns.select(path, table.schema_arrow.names)
            for batch in table.iter_batches(100, columns=names, use_threads=False):
                values = [batch.column(name).to_pylist() for name in names]
                yield from zip(*values, strict=True) if columns.together else values[0]


def _dataset_rows(path: Path, dataset: Any, columns: _Columns) -> Iterator[Any]:
    features: Iterable[str] = dataset.features or next(iter(dataset), {})
    if not features:
        return
    names = columns.select(path, features)
    for row in dataset.select_columns(names):
        yield tuple(row[name] for name in names) if columns.together else row[names[0]]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
