"""Paths in an experiment file: a file, a folder, or a Hugging Face hub name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from needlework.config.errors import Location, Problem

TEXT_PATH = (
    "text file, folder of text files, Parquet/JSON lines/CSV file or folder, folder of a saved "
    "dataset, or owner/name of a hub dataset"
)
TEXT_COLUMN = "column with the text, if the source is a table"
SPLIT = "split, if the dataset has several"
SPECIAL_TOKENS = (
    "text that spells a special token, such as </s>, is encoded as its characters (text) or as the "
    "token (allow); the log says how often it occurs"
)
"""Descriptions of the keys that name a text."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_name(path: str) -> bool:
    """Whether a path that does not exist may be an owner/name on the hub."""
    return bool(_HUB_NAME.fullmatch(path)) and not Path(path).parent.is_dir()


def source_problems(where: Location, path: str) -> Iterator[Problem]:
    """A problem if `path`, the value at `where`, neither exists nor looks like a hub name."""
    if not Path(path).exists() and not is_hub_name(path):
        yield where, "no such file or folder; write an existing path or an owner/name on the hub"


def json_object(file: Path) -> dict | None:
    """The JSON object in `file`; None if there is no such file, or it holds anything else."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
