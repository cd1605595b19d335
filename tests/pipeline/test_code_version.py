import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from needlework.config.attention import Attention
from needlework.config.tasks import Task
from needlework.pipeline.code_version import code_files

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
    "needlework/wool.py": "from needlework.yarn.spin import something_in_a_ring\n",
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


def _tree(folder: Path) -> Path:
    for name, text in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(ROOT / "needlework/pipeline/code_version.py", folder / "needlework")
    return folder


def _version(folder: Path, *args: str, name: str = "code_version"):
    """A function of the code_version.py that lies in `folder`, called anew."""
    spec = importlib.util.spec_from_file_location(
        "elsewhere", folder / "needlework/pipeline/code_version.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)(*args)


def test_the_files_are_the_script_and_all_it_imports_but_config(tmp_path):
    found = _version(_tree(tmp_path), "make_cloth.py", name="code_files")
    assert set(found) == CLOTH


@pytest.mark.parametrize("changed", TREE)
def test_the_version_changes_with_these_files_alone(tmp_path, changed):
    folder = _tree(tmp_path)
    before = _version(folder, "make_cloth.py")
    with (folder / changed).open("a") as file:
        file.write("# a word more\n")
    assert (_version(folder, "make_cloth.py") != before) == (changed in CLOTH)


def test_the_version_is_of_content_not_of_place_or_time(tmp_path):
    here, there = _tree(tmp_path / "here"), _tree(tmp_path / "there")
    (there / "needlework/loom.py").touch()
    assert _version(here, "make_cloth.py") == _version(there, "make_cloth.py")
    assert _version(here, "make_cloth.py") != _version(here, "make_thread.py")


def test_a_new_submodule_behind_a_known_import_counts(tmp_path):
    folder = _tree(tmp_path)
    before = _version(folder, "make_cloth.py")
    (folder / "needlework/yarn/twist").mkdir()
    (folder / "needlework/yarn/twist/__init__.py").write_text("")
    assert _version(folder, "make_cloth.py") != before


def test_modules_named_by_the_caller_count_with_what_they_import(tmp_path):
    folder = _tree(tmp_path)
    found = _version(folder, "make_thread.py", "needlework.yarn.card", name="code_files")
    assert set(found) == {
        "workflow/scripts/make_thread.py",
        "needlework/yarn/card.py",
        *CLOTH - {"workflow/scripts/make_cloth.py"},
    }


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("make_lace.py",), "make_lace.py: cannot be read: No such file"),
        (("make_cloth.py", "needlework.silk"), "needlework.silk: no such module below"),
    ],
)
def test_what_is_not_there_is_told(tmp_path, args, says):
    with pytest.raises(ValueError, match=says):
        _version(_tree(tmp_path), *args)


def test_a_script_that_is_no_python_is_told(tmp_path):
    folder = _tree(tmp_path)
    (folder / "needlework/loom.py").write_text("def warp(:\n")
    with pytest.raises(ValueError, match=r"loom\.py:1: not Python: invalid syntax"):
        _version(folder, "make_cloth.py")


# What a script may find in sys.modules once its imports, and the named modules, have run.
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
        ("plot_heatmap.py", []),
    ],
)
def test_every_module_that_a_script_really_imports_counts(script, modules):
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
    found = {}
    for cls in parent.__subclasses__():
        found |= {cls.model_fields["type"].default: cls} if "type" in cls.model_fields else {}
        found |= _types(cls)
    return found


def test_an_evaluation_has_the_code_of_its_own_system_only():
    systems = {f"needlework/attention/{name}.py" for name in _types(Attention)}
    assert len(systems) >= 3
    assert not systems & set(code_files("evaluate_system.py"))
    for name in _types(Attention):
        counted = systems & set(code_files("evaluate_system.py", f"needlework.attention.{name}"))
        assert counted == {f"needlework/attention/{name}.py"}


def test_samples_have_the_code_of_their_own_task_only():
    modules = {cls.module for cls in _types(Task).values()}
    files = {f"needlework/tasks/{module}.py" for module in modules}
    assert len(files) >= 2
    for module in modules:
        counted = files & set(code_files("generate_samples.py", f"needlework.tasks.{module}"))
        assert counted == {f"needlework/tasks/{module}.py"}
