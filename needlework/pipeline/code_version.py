"""The version of the code behind a stage: a hash of its script and every module it imports.

Snakemake does not see a changed module behind a script, so each rule carries this hash as a param.
Read by the stdlib's ast, with nothing imported. needlework.config is left out: what it decides
reaches a stage as params.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"


def code_version(script: str, *modules: str) -> str:
    """Hash of `workflow/scripts/<script>`, of `modules`, and of what these import.

    `modules` are dotted names that the script imports by name at run time, such as the one
    attention system that it evaluates.

    Raises:
        ValueError: the script or a module does not exist, or is not Python.
    """
    files = code_files(script, *modules)
    return hashlib.sha256("\n".join(f"{k} {v}" for k, v in files.items()).encode()).hexdigest()[:16]


def code_files(script: str, *modules: str) -> dict[str, str]:
    """sha256 of each file behind code_version(script, *modules), by path below the project."""
    paths = {SCRIPTS / script}
    for module in modules:
        paths.update(_module_files(module))
        if not _module_files(module):
            raise ValueError(f"{module}: no such module below {ROOT}")
    pending = list(paths)
    while pending:
        for found in _imports(pending.pop()):
            if found not in paths:
                paths.add(found)
                pending.append(found)
    return {path.relative_to(ROOT).as_posix(): _read(path)[0] for path in sorted(paths)}


def _imports(path: Path) -> Iterable[Path]:
    return {file for module in _read(path)[1] for file in _module_files(module)}


@cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """sha256 of a file, and every needlework module that it may import."""
    try:
        source = path.read_bytes()
        tree = ast.parse(source)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: not Python: {error.msg}; mend the line") from None
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
    """Files of a dotted name below needlework/, its packages' __init__.py among them."""
    parts = module.split(".")
    if parts[0] != "needlework" or parts[1:2] == ["config"]:
        return []
    path = ROOT.joinpath(*parts)
    own = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    # needlework/__init__.py only hands out names lazily; what is used is imported where it stands.
    packages = [ROOT.joinpath(*parts[:i], "__init__.py") for i in range(2, len(parts))]
    return own + [file for file in packages if file.is_file()] if own else []
