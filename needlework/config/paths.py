"""What a path of the user's names: a file, a folder, or something on the hub."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from needlework.config.errors import Problem

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_name(path: str) -> bool:
    """Whether a path that is not there may be an owner/name of the hub."""
    return bool(_HUB_NAME.fullmatch(path)) and not Path(path).parent.is_dir()


def source_problems(where: tuple[str, ...], path: str) -> Iterator[Problem]:
    """Whether `path`, which stands at `where`, is there or may be on the hub."""
    if not Path(path).exists() and not is_hub_name(path):
        yield where, "no such file or folder; name an existing one, or a hub's owner/name"


def json_object(file: Path) -> dict | None:
    """The mapping that the file holds as JSON; None where it is none."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
