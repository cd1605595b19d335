from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from needlework.config.base import Strict


class Description(Strict):
    path: str
    stages: tuple[Literal["prefill", "decode"], ...]
    sums: tuple[tuple[float, ...], ...]


JSON = '{"path": "%s", "stages": ["prefill"], "sums": [[1, 0.5], []]}'


def test_arrays_of_json_are_read_as_tuples():
    description = Description.model_validate_json(JSON % "gates")
    assert description == Description(path="gates", stages=("prefill",), sums=((1.0, 0.5), ()))
    assert Description.model_validate_json(description.model_dump_json()) == description


def test_home_is_expanded_in_the_path():
    assert Description.model_validate_json(JSON % "~/gates").path == str(Path.home() / "gates")


def test_strings_are_not_read_as_tuples():
    with pytest.raises(ValidationError, match="stages"):
        Description.model_validate_json('{"path": "a", "stages": "prefill", "sums": []}')
