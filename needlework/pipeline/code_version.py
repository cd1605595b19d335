"""Code versions: a hash of a stage's script and every module it imports.

Snakemake does not notice changes in modules that a script imports, so each rule has this hash as a
param. Imports are read with `ast`; nothing is imported. needlework.config is excluded: its values
reach a stage as params.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from needlework.runtime.locations import PACKAGE, WORKFLOW


def code_version(script: str, *modules: str) -> str:
    """Hash of `workflow/scripts/<script>`, of `modules`, and of everything they import.

    Args:
        modules: dotted names that the script imports by name at run time, such as the module of
            the attention method it evaluates.

    Raises:
        ValueError: the script or a module does not exist or has a syntax error.
    """
    return _version(code_files(script, *modules))


def modules_version(*modules: str) -> str:
    """Hash of `modules` and of everything they import.

    Raises:
        ValueError: as `code_version`.
    """
    return _version(_hashes(_files_of(modules)))


def _version(files: dict[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{k} {v}" for k, v in files.items()).encode()).hexdigest()[:16]


def code_files(script: str, *modules: str) -> dict[str, str]:
    """sha256 of each file that `code_version` hashes, by its path in a checkout.

    Raises:
        ValueError: as `code_version`.
    """
    return _hashes([WORKFLOW / "workflow" / "scripts" / script, *_files_of(modules)])


def _files_of(modules: Iterable[str]) -> list[Path]:
    """Files of modules, which must exist."""
    paths = []
    for module in modules:
        files = _module_files(module)
        if not files:
            raise ValueError(f"{module}: no such module in {PACKAGE}")
        paths += files
    return paths


def _hashes(pending: list[Path]) -> dict[str, str]:
    """sha256 of files and of everything they import, by path."""
    paths = set(pending)
    while pending:
        for file in _imported_files(pending.pop()):
            if file not in paths:
                paths.add(file)
                pending.append(file)
    hashes = {_path_in_checkout(path): _read(path)[0] for path in paths}
    return dict(sorted(hashes.items(), key=lambda item: Path(item[0])))


def _path_in_checkout(path: Path) -> str:
    root = WORKFLOW if path.is_relative_to(WORKFLOW) else PACKAGE.parent
    return path.relative_to(root).as_posix()


def _imported_files(path: Path) -> Iterable[Path]:
    return {file for module in _read(path)[1] for file in _module_files(module)}


@cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """sha256 of a file, and the dotted names that it may import."""
    try:
        source = path.read_bytes()
        tree = ast.parse(source)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: syntax error: {error.msg}") from None
    return hashlib.sha256(source).hexdigest(), tuple(_imported_names(tree))


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            # `from package import x` may name a submodule.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_files(module: str) -> list[Path]:
    """Files of a module of needlework, including the __init__.py of its packages."""
    parts = module.split(".")
    if parts[0] != "needlework" or parts[1:2] == ["config"]:
        return []
    path = PACKAGE.parent.joinpath(*parts)
    files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    # needlework/__init__.py only resolves names lazily; users import what they need directly.
    packages = [PACKAGE.parent.joinpath(*parts[:i], "__init__.py") for i in range(2, len(parts))]
    return files + [file for file in packages if file.is_file()] if files else []
