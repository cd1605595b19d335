"""Code versions: which files count, and what changes the hash."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from needlework.config.attention.registry import SYSTEMS
from needlework.config.tasks.base import Task
from needlework.pipeline import code_version as code_version_module
from needlework.pipeline.code_version import code_files, code_version

pytestmark = pytest.mark.slow

TREE = {
    "workflow/scripts/make_cloth.py": (
        "import json\nfrom needlework.loom import warp\nfrom needlework.config.plan import Plan\n"
    ),
    "workflow/scripts/make_thread.py": "import needlework.yarn.spin\n",
    "needlework/__init__.py": "from needlework.dye import never_followed\n",
    "needlework/loom.py": (
        "def warp():\n    from needlework.yarn import spin, twist\n    return spin, twist\n"
    ),
    "needlework/yarn/__init__.py": "",
    "needlework/yarn/spin.py": "import needlework.wool as wool\n",
    "needlework/yarn/twist.py": "import numpy\nimport os.path\n",
    "needlework/yarn/card.py": "import needlework.loom\n",
    "needlework/wool.py": "from needlework.yarn.spin import circular\n",
    "needlework/dye.py": "colour = 'red'\n",
    "needlework/config/__init__.py": "",
    "needlework/config/plan.py": "class Plan: ...\n",
}
CLOTH = {
    "workflow/scripts/make_cloth.py",
    "needlework/loom.py",
    "needlework/yarn/__init__.py",
    "needlework/yarn/spin.py",
    "needlework/yarn/twist.py",
    "needlework/wool.py",
}


def _write(folder: Path) -> Path:
    for name, text in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project in which `code_version` looks for code."""
    _use(monkeypatch, _write(tmp_path / "project"))
    return tmp_path / "project"


def _use(monkeypatch: pytest.MonkeyPatch, project: Path, workflow: Path | None = None) -> None:
    monkeypatch.setattr(code_version_module, "PACKAGE", project / "needlework")
    monkeypatch.setattr(code_version_module, "WORKFLOW", workflow or project)


def version(*args: str) -> str:
    code_version_module._read.cache_clear()
    return code_version(*args)


def test_files_are_the_script_and_its_imports_without_config(tree):
    assert set(code_files("make_cloth.py")) == CLOTH


@pytest.mark.parametrize("changed", TREE)
def test_the_version_depends_on_these_files_only(tree, changed):
    before = version("make_cloth.py")
    with (tree / changed).open("a") as file:
        file.write("# one more line\n")
    assert (version("make_cloth.py") != before) == (changed in CLOTH)


def test_the_version_depends_on_content_not_on_location_or_time(tree, tmp_path, monkeypatch):
    first = version("make_cloth.py")
    other = _write(tmp_path / "other")
    (other / "needlework/loom.py").touch()
    _use(monkeypatch, other)
    assert version("make_cloth.py") == first
    assert version("make_thread.py") != first


def test_an_installed_wheel_has_the_version_of_its_checkout(tree, tmp_path, monkeypatch):
    version_of_checkout, files = version("make_cloth.py"), code_files("make_cloth.py")
    site = _write(tmp_path / "site-packages")
    workflow = site / "needlework/_workflow/workflow"
    workflow.parent.mkdir()
    (site / "workflow").rename(workflow)
    _use(monkeypatch, site, workflow.parent)
    assert version("make_cloth.py") == version_of_checkout
    assert code_files("make_cloth.py") == files


def test_a_new_submodule_of_an_imported_package_changes_the_version(tree):
    before = version("make_cloth.py")
    (tree / "needlework/yarn/twist").mkdir()
    (tree / "needlework/yarn/twist/__init__.py").write_text("")
    assert version("make_cloth.py") != before


def test_named_modules_count_with_their_imports(tree):
    assert set(code_files("make_thread.py", "needlework.yarn.card")) == {
        "workflow/scripts/make_thread.py",
        "needlework/yarn/card.py",
        *CLOTH - {"workflow/scripts/make_cloth.py"},
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("make_lace.py",), "make_lace.py: cannot be read: No such file"),
        (("make_cloth.py", "needlework.silk"), "needlework.silk: no such module in"),
    ],
)
def test_missing_code_is_an_error(tree, args, message):
    with pytest.raises(ValueError, match=message):
        version(*args)


def test_a_syntax_error_has_its_line(tree):
    (tree / "needlework/loom.py").write_text("def warp(:\n")
    with pytest.raises(ValueError, match=r"loom\.py:1: syntax error: invalid syntax"):
        version("make_cloth.py")


# Files of the modules that a script and the named modules import.
_IMPORTED = """
import ast, importlib, json, sys
script, *modules = sys.argv[1:]
tree = ast.parse(open(script).read())
tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
exec(compile(tree, script, "exec"))
for module in modules:
    importlib.import_module(module)
files = [m.__file__ for name, m in sys.modules.items() if name.startswith("needlework.")]
print(json.dumps(files))
"""


@pytest.mark.parametrize(
    ("script", "modules"),
    [
        ("evaluate_system.py", ["needlework.attention.methods.sketchwalk"]),
        ("generate_samples.py", ["needlework.tasks.niah"]),
        ("summarize_scores.py", []),
        ("plot_figure.py", ["needlework.figures.heatmap"]),
    ],
)
def test_every_module_that_a_script_imports_counts(script, modules):
    path = ROOT / "workflow/scripts" / script
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED, path, *modules],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {Path(file).relative_to(ROOT).as_posix() for file in json.loads(done.stdout)}
    counted = set(code_files(script, *modules))
    outside = {name for name in imported if name.startswith("needlework/config/")}
    assert imported - outside <= counted
    assert not any(name.startswith("needlework/config/") for name in counted)


def _types(parent: type) -> dict[str, type]:
    types = {}
    for cls in parent.__subclasses__():
        types |= {cls.model_fields["type"].default: cls} if "type" in cls.model_fields else {}
        types |= _types(cls)
    return types


def test_an_evaluation_counts_the_code_of_its_attention_method_only():
    modules = [f"needlework.attention.methods.{name}" for name in SYSTEMS]
    files = {f"{module.replace('.', '/')}.py" for module in modules}
    assert len(files) >= 3
    assert not files & set(code_files("evaluate_system.py"))
    for module in modules:
        counted = files & set(code_files("evaluate_system.py", module))
        assert counted == {f"{module.replace('.', '/')}.py"}


def test_samples_count_the_code_of_their_task_only():
    modules = {cls.module for cls in _types(Task).values()}
    files = {f"{module.replace('.', '/')}.py" for module in modules}
    assert len(files) >= 2
    for module in modules:
        counted = files & set(code_files("generate_samples.py", module))
        assert counted == {f"{module.replace('.', '/')}.py"}
