import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import pytest
from pydantic import ValidationError

import needlework.config.experiment  # noqa: F401 - defines every section
from needlework.config.attention.seer import Seer
from needlework.config.base import Strict
from needlework.config.opening import Opening


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


def _classes(parent: type[Strict]) -> Iterator[type[Strict]]:
    for cls in parent.__subclasses__():
        yield cls
        yield from _classes(cls)


def test_home_folders_are_expanded_in_every_key_that_names_a_file_or_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (validator,) = Strict.__pydantic_decorators__.field_validators.values()
    named = {
        (cls.__name__, name)
        for cls in _classes(Strict)
        if cls.__module__.startswith("needlework.config.")
        for name, field in cls.model_fields.items()
        if str in (field.annotation, *get_args(field.annotation))
        and re.search(r"\b(folder|file)s?\b", field.description or "")
    }
    assert ("Checkpoint", "path") in named
    assert ("Checkpoint", "offload_folder") in named
    not_paths = {("Experiment", "experiment"), ("Experiment", "package")}
    assert {field for _, field in named - not_paths} <= set(validator.info.fields)
    assert Opening(offload_folder="~/disk").offload_folder == "/home/me/disk"
    assert Seer(gates="~/gates").gates == "/home/me/gates"
