"""Conda environments: valid for conda, complete, and with the versions of constraints.txt."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from rattler import MatchSpec
from support.paths import ROOT

pytestmark = pytest.mark.slow

ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
SNAKEFILES = [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]
CONDA_NAMES = {
    "torch": "pytorch",
    "huggingface-hub": "huggingface_hub",
    "rouge_score": "rouge-score",
    # pydantic requires one version of its core.
    "pydantic_core": "pydantic",
}
"""Distribution -> its name on conda-forge, where the two differ."""
AT_RUN_TIME = {
    "evaluate_system": "attention",
    "finetune_model": "attention",
    "generate_samples": "tasks",
    "stream_perplexity": "attention",
    "generate_finetune_data": "tasks",
    "plot_figure": "figures",
}
"""Rule -> the package whose modules its script imports by names that the experiment gives."""


def rules() -> dict[str, str]:
    """Name of each rule -> its text."""
    found = {}
    for file in SNAKEFILES:
        parts = re.split(r"^(?:rule|checkpoint) (\w+):$", file.read_text(), flags=re.MULTILINE)
        found |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return found


RULES = rules()
JOBS = {name: text for name, text in RULES.items() if "    script:" in text}


def requirements() -> dict[str, str]:
    """Distribution -> its version in constraints.txt, by conda's names."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {CONDA_NAMES.get(name, name): version for name, version in pinned.items()}


def specs(environment: Path) -> list[str]:
    return yaml.safe_load(environment.read_text())["dependencies"]


def environment_of(rule: str) -> Path:
    path = re.search(r'^    conda:\n        "([^"]+)"$', JOBS[rule], flags=re.MULTILINE).group(1)
    return (ROOT / "workflow/rules" / path).resolve()


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_can_read_it(environment: Path):
    document = yaml.safe_load(environment.read_text())
    assert set(document) == {"channels", "dependencies"}
    assert document["channels"] == ["conda-forge", "nodefaults"]
    for spec in document["dependencies"]:
        parsed = MatchSpec(spec, strict=True)
        assert re.fullmatch(rf"{re.escape(parsed.name.normalized)}=[\w.]+", spec), spec
    names = [spec.split("=")[0] for spec in document["dependencies"]]
    assert names[0] == "python"
    assert names[1:] == sorted(set(names[1:]))


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_versions_equal_the_constraints(environment: Path):
    python, *packages = (spec.split("=") for spec in specs(environment))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={python[1]}"
    pinned = requirements()
    assert dict(packages) == {
        name: pinned.get(name, "not in constraints.txt") for name, _ in packages
    }


@pytest.mark.parametrize("rule", JOBS)
def test_every_job_has_an_environment(rule: str):
    assert environment_of(rule) in ENVIRONMENTS


def test_every_environment_has_a_job():
    assert {environment_of(rule) for rule in JOBS} == set(ENVIRONMENTS)


@pytest.mark.parametrize("rule", JOBS)
def test_environment_has_what_the_script_imports(rule: str):
    start = [ROOT / f"workflow/scripts/{rule}.py"]
    if rule in AT_RUN_TIME:
        start += (ROOT / "needlework" / AT_RUN_TIME[rule]).glob("*.py")
    has = {spec.split("=")[0] for spec in specs(environment_of(rule))}
    needed = packages_behind(start)
    assert {name: by for name, by in needed.items() if name not in has} == {}


def packages_behind(files: list[Path]) -> dict[str, str]:
    """conda-forge package -> a file that imports it, behind `files` and all that they import."""
    distributions = packages_distributions()
    needed, seen = {}, set()
    while files:
        file = files.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        for module in imports(ast.parse(file.read_text())):
            top = module.split(".")[0]
            if top == "needlework":
                parts = module.split(".")
                files += [ROOT.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts))]
                files += [ROOT.joinpath(*parts[:-1], f"{parts[-1]}.py")]
                files += [ROOT.joinpath(*parts, "__init__.py")]
            elif top not in sys.stdlib_module_names:
                name = distributions[top][0].lower()
                needed.setdefault(CONDA_NAMES.get(name, name), str(file.relative_to(ROOT)))
    return needed


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported when the code runs: not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            # `from package import x` may name a submodule.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        required += extra
    pinned = requirements()
    for text in required:
        requirement = Requirement(text)
        version = pinned[CONDA_NAMES.get(requirement.name, requirement.name)]
        assert requirement.specifier.contains(version), f"{text}: {version}"
