"""Texts of a source: plain files, tables, saved datasets, or a dataset of the hub."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pyarrow.parquet import ParquetFile

from needlework.config.paths import is_hub_name
from needlework.sources import hub

TEXT_SUFFIXES = (".txt", ".md")
TABLES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""Suffix of a table -> what `datasets` calls its format."""
_PLAIN_TABLES = (".jsonl", ".json", ".csv")
_ABOUT_DATA = ("dataset_infos.json", "dataset_info.json")
_PART_BYTES = 4 * 2**20


def read_texts(path: str | Path, column: str = "text", split: str = "train") -> Iterator[str]:
    """The texts of a source, one after the other, in the same order each time.

    They are read as they are asked for. A text file longer than 4 MiB comes in parts that end
    where a paragraph does. Texts of white space alone are left out.

    Args:
        path: a .txt or .md file, or a folder of them (by path, hidden ones left out); a .parquet,
            .jsonl, .json or .csv file, or a folder of one such kind; a folder that `datasets`
            saved; or, where there is none, a hub's owner/name.
        column: of a table, the one with the text.
        split: of a dataset that has several.

    Raises:
        ValueError: there is no such source, or no text in it; it is not UTF-8; it is no table; the
            column or the split is not there, or the column is not text.
    """
    any_text = False
    for number, text in enumerate(read_column(path, (column,), split)):
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{path}: column {column!r} is not text: row {number} holds {text!r:.40}; "
                "name the column with the text"
            )
        if text and not text.isspace():
            any_text = True
            yield text
    if not any_text:
        raise ValueError(f"{path}: no text in it; name a source that has some")


def read_column(path: str | Path, columns: Sequence[str], split: str = "train") -> Iterator[Any]:
    """What stands in the first of `columns` that a source has, as `texts` reads it, of any type."""
    return _read(Path(path), _Wanted(columns), split)


def read_documents(
    path: str | Path, column: str = "text", split: str = "train"
) -> Iterator[Iterator[str]]:
    """The documents of a source, each in its parts: a text file is one, and so is a table's row.

    Arguments and errors as of `texts`; text files may be empty.
    """
    path = Path(path)
    files = [path] if path.is_file() else _visible(path)
    if files and all(file.suffix.lower() in TEXT_SUFFIXES for file in files):
        return map(_parts, files)
    return (iter([text]) for text in read_texts(path, column, split))


def read_pairs(
    path: str | Path, columns: tuple[str, str], split: str = "train"
) -> Iterator[tuple[str, str]]:
    """What stands in two columns of a table, row by row, as `texts` reads it.

    Raises:
        ValueError: as `texts`; a column is not there; what stands in it is blank or no text.
    """
    wanted = _Wanted(columns, together=True)
    for number, row in enumerate(_read(Path(path), wanted, split)):
        for column, text in zip(columns, row, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"{path}: column {column!r}: row {number} holds {text!r:.40}; write some text, "
                    "or name another column"
                )
        yield row


class _Wanted(NamedTuple):
    """What of a table is read: the first of `columns` that is there, or all of them together."""

    columns: Sequence[str]
    together: bool = False

    def of(self, path: Path, features: Iterable[str]) -> list[str]:
        """The names to read of those there."""
        found = [column for column in self.columns if column in features]
        lacking = [column for column in self.columns if column not in features]
        if lacking if self.together else not found:
            wrong = " or ".join(map(repr, lacking))
            raise _Wrong(f"{path}: no column {wrong}; write one of {', '.join(features)}")
        return found if self.together else found[:1]


def _read(path: Path, wanted: _Wanted, split: str) -> Iterator[Any]:
    if path.is_file():
        return _read_file(path, wanted)
    if path.is_dir():
        return _read_folder(path, wanted, split)
    if is_hub_name(str(path)):
        return _read_hub(path, wanted, split)
    raise ValueError(f"{path}: no such file or folder; name one that is there")


def _read_file(path: Path, wanted: _Wanted) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return _read_plain(path, [path], wanted)
    if suffix not in TABLES:
        raise ValueError(
            f"{path}: neither text nor a table; name a file that ends in one of "
            + ", ".join([*TEXT_SUFFIXES, *TABLES])
        )
    # The only split of one file; `split` is for those that have several.
    return _read_tables(path, [path], wanted, None)


def _read_folder(path: Path, wanted: _Wanted, split: str) -> Iterator[Any]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_saved(path, wanted, split)
    files = _visible(path)
    plain = [file for file in files if file.suffix.lower() in TEXT_SUFFIXES]
    tables = [f for f in files if f.suffix.lower() in TABLES and f.name not in _ABOUT_DATA]
    # A page about the tables beside them is no text of theirs.
    if tables and all(file.suffix.lower() == ".md" for file in plain):
        plain = []
    kinds: dict[str, Path] = {}
    for file in [*plain, *tables]:
        suffix = file.suffix.lower()
        kinds.setdefault("text" if suffix in TEXT_SUFFIXES else suffix, file)
    if not kinds:
        raise ValueError(
            f"{path}: a folder without texts; it should hold files that end in one of "
            + ", ".join([*TEXT_SUFFIXES, *TABLES])
        )
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise ValueError(
            f"{path}: holds files of several kinds, such as {one.name} and {other.name};"
            " name one file, or a folder with one kind"
        )
    if plain:
        return _read_plain(path, plain, wanted)
    return _read_tables(path, tables, wanted, split)


def _visible(path: Path) -> list[Path]:
    """The files of a folder by path, hidden ones left out."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [f for f in files if not any(p.startswith(".") for p in f.relative_to(path).parts)]


def _read_plain(path: Path, files: list[Path], wanted: _Wanted) -> Iterator[str]:
    if wanted.together:
        raise ValueError(
            f"{path}: plain text; name a table with columns {' and '.join(wanted.columns)}"
        )
    return (part for file in files for part in _parts(file))


def _parts(file: Path) -> Iterator[str]:
    """A UTF-8 file's text, cut at ends of paragraphs (else lines, else words) if it is long."""
    decoder, text, taken = codecs.getincrementaldecoder("utf-8")(), "", 0
    with file.open("rb") as stream:
        more = True
        while more:
            more = stream.read(_PART_BYTES)
            before = taken - len(decoder.getstate()[0])
            try:
                text += decoder.decode(more, final=not more)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file}: not UTF-8 at byte {before + error.start}; save it as UTF-8"
                ) from None
            if taken == 0:
                text = text.removeprefix("\ufeff")
            taken += len(more)
            if len(more) == _PART_BYTES:
                ends = (max(text.rfind("\n\n"), text.rfind("\n\r\n")), text.rfind("\n"))
                end = next((end for end in (*ends, text.rfind(" ")) if end > 0), 0)
                yield text[:end]
                text = text[end:]
    yield text


def _datasets() -> Any:
    """The `datasets` library, which takes a second to import."""
    import datasets

    # Else it tells the hub about each local folder that is opened.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


def _read_tables(
    path: Path, files: list[Path], wanted: _Wanted, split: str | None
) -> Iterator[Any]:
    if not any(file.stat().st_size for file in files):
        raise ValueError(f"{path}: empty; name a source that has text")
    kind = TABLES[files[0].suffix.lower()]
    with TemporaryDirectory() as cache:
        try:
            if path.is_file():
                how = {"path": kind, "data_files": str(path), "cache_dir": cache}
            else:
                how = {"path": str(path), "cache_dir": cache}
            if kind == "parquet":
                opened = _datasets().load_dataset_builder(**how).config.data_files
            else:
                opened = _datasets().load_dataset(**how, streaming=True)
            found = _split(path, opened, next(iter(opened)) if path.is_file() else split)
            read = _parquet if kind == "parquet" else _column
            yield from read(path, found, wanted)
        except _Wrong:
            raise
        except Exception as error:  # each format fails in a way of its own
            for file in files:
                if file.suffix.lower() in _PLAIN_TABLES:
                    for _ in _parts(file):
                        pass
            raise ValueError(f"{path}: not to be read as {kind}: {_line(error)}") from None


def _read_saved(path: Path, wanted: _Wanted, split: str) -> Iterator[Any]:
    datasets = _datasets()
    try:
        opened = datasets.load_from_disk(str(path))
    except Exception as error:  # files may be missing or cut short
        raise ValueError(f"{path}: not to be read as a saved dataset: {_line(error)}") from None
    if isinstance(opened, datasets.DatasetDict):
        opened = _split(path, opened, split)
    yield from _column(path, opened, wanted)


def _read_hub(path: Path, wanted: _Wanted, split: str) -> Iterator[Any]:
    gone = hub.unreachable()
    try:
        opened = _datasets().load_dataset(str(path), streaming=True)
        yield from _column(path, _split(path, opened, split), wanted)
    except _Wrong:
        raise
    except Exception as error:  # the network's errors are many
        raise ValueError(
            f"{path}: no such folder, and not to be had from the hub: {gone or _line(error)}; "
            "name one that exists, or fetch it where there is a network"
        ) from None


class _Wrong(ValueError):
    """An error of ours, told from those of readers."""


def _split(path: Path, opened: dict[str, Any], split: str) -> Any:
    if split not in opened:
        raise _Wrong(f"{path}: no split {split!r}; write one of {', '.join(opened)}")
    return opened[split]


def _parquet(path: Path, files: Sequence[str], wanted: _Wanted) -> Iterator[Any]:
    """As `_column`. The reader of `datasets` goes ahead in threads: it holds far more than is asked
    for, and aborts a process that ends before the last row."""
    for file in files:
        with ParquetFile(file) as table:
            columns = wanted.of(path, table.schema_arrow.names)
            for batch in table.iter_batches(100, columns=columns, use_threads=False):
                found = [batch.column(column).to_pylist() for column in columns]
                yield from zip(*found, strict=True) if wanted.together else found[0]


def _column(path: Path, dataset: Any, wanted: _Wanted) -> Iterator[Any]:
    features: Iterable[str] = dataset.features or next(iter(dataset), {})
    if not features:
        return
    columns = wanted.of(path, features)
    for row in dataset.select_columns(columns):
        yield tuple(row[column] for column in columns) if wanted.together else row[columns[0]]


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
