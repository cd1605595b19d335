"""Modules that are imported by name follow the layers of pyproject.toml, as static imports do."""

import ast
import tomllib
from pathlib import Path

import pytest
from support.paths import ROOT

from needlework.config.attention.registry import SYSTEMS
from needlework.config.finetune_data import Examples
from needlework.config.tasks.registry import Task

BY_NAME = {
    "needlework/__init__.py": None,
    "needlework/evaluation/__init__.py": None,
    "needlework/attention/base.py": "attention",
    "needlework/config/attention/registry.py": "config",
    "needlework/config/models/registry.py": "config",
    "needlework/config/tasks/registry.py": "config",
    "needlework/evaluation/early_stopping.py": "scoring",
    "needlework/models/checkpoint.py": "attention",
    "needlework/models/loading.py": None,
    "needlework/planning/plan.py": "training",
    "needlework/tasks/generate.py": "tasks",
    "needlework/training/run.py": "evaluation",
}
"""File that imports modules by name -> the highest package they come from; None: it only passes on
public names, or imports no module of needlework."""


def layers() -> dict[str, int]:
    """Package -> its layer, 0 for the lowest."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (names,) = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    return {
        package: height
        for height, layer in enumerate(reversed(names))
        for package in layer.split(" | ")
    }


def importers() -> set[str]:
    """Files of needlework that call import_module."""
    files = set()
    for path in (ROOT / "needlework").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                files.add(path.relative_to(ROOT).as_posix())
    return files


def test_every_import_by_name_is_declared():
    assert importers() == set(BY_NAME)


@pytest.mark.parametrize(("file", "package"), [(k, v) for k, v in BY_NAME.items() if v])
def test_imports_by_name_do_not_go_up(file: str, package: str):
    height = layers()
    assert height[Path(file).parts[1]] >= height[package]


def subclasses(parent: type) -> set[type]:
    found = set(parent.__subclasses__())
    return found | {below for cls in found for below in subclasses(cls)}


@pytest.mark.parametrize(
    ("parent", "package"),
    [(Task, "needlework.tasks."), (Examples, "needlework.finetune_data.")],
)
def test_tasks_and_rows_name_a_module_of_their_package(parent, package):
    modules = {cls.module for cls in subclasses(parent) if getattr(cls, "module", None)}
    assert modules
    assert all(module.startswith(package) for module in modules)


def test_attention_names_a_module_of_the_methods():
    for cls in SYSTEMS.values():
        if "type" in cls.model_fields:
            kind = cls.model_fields["type"].default
            assert (ROOT / f"needlework/attention/methods/{kind}.py").is_file()
