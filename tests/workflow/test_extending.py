"""The recipes of docs/extending.md: each is applied to a copy of the project, tested and run."""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml
from support.paths import ROOT
from support.project_copy import Project

from needlework.pipeline.provenance import read_record

pytestmark = pytest.mark.workflow

PAGE = (ROOT / "docs/extending.md").read_text()
BLOCK = re.compile(
    r"^(?P<place>New file|In|At the end of) `(?P<file>[^`]+)`(?:, before `(?P<before>[^`]+)`)?:"
    r"\n+```\w+\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
EXPERIMENT = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
METHOD, TASK, SOURCE, FIGURE = (
    "An attention method",
    "A task",
    "A model source",
    "A figure",
)


def section(title: str) -> str:
    """The text of a section of the page."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def add(recipe: str, root: Path) -> dict[str, str]:
    """Do what a recipe says; the files touched, each with how."""
    touched = {}
    for block in BLOCK.finditer(section(recipe)):
        file, code = root / block["file"], block["code"]
        touched[block["file"]] = block["place"]
        if block["place"] == "New file":
            assert not file.exists()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code)
        elif block["place"] == "In":
            before, marker, after = file.read_text().partition(f"\n{block['before']}")
            assert marker, f"{block['file']} has no line that starts with {block['before']!r}"
            file.write_text(f"{before}\n{code}\n{marker}{after}")
        else:
            file.write_text(f"{file.read_text()}\n\n{code}")
    return touched


def merge(experiment: dict, recipe: str) -> dict:
    """The experiment with the keys that a recipe adds."""
    for text in EXPERIMENT.findall(section(recipe)):
        for part, entries in yaml.safe_load(text).items():
            experiment[part] = {**experiment[part], **entries}
    return experiment


@pytest.fixture
def extended(finished: Project, tmp_path: Path) -> Project:
    """A finished run to extend, so that only what a recipe adds is computed."""
    return finished.copy(tmp_path / "project")


def run(project: Project, name: str, *args: str) -> str:
    done = project.snakemake("--configfile", name, "--cores", "2", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("recipe", "most_files"), [(METHOD, 2), (TASK, 2), (SOURCE, 2), (FIGURE, 3)]
)
def test_a_recipe_touches_few_files_and_its_own_test_passes(recipe, most_files, project: Project):
    touched = add(recipe, project.root)
    tests = [file for file in touched if file.startswith("tests/")]
    assert len(touched) - len(tests) <= most_files
    if recipe != FIGURE:
        done = project.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout


def test_a_new_method_and_task_run_and_nothing_else_runs_again(extended: Project):
    experiment = yaml.safe_load((extended.root / "small.yaml").read_text())
    for recipe in (METHOD, TASK):
        add(recipe, extended.root)
        merge(experiment, recipe)
    extended.write(experiment)
    results = extended.root / "results/small"
    run(extended, "small.yaml", "results/small/summary.csv", "results/small/plan.csv")
    summary = pl.read_csv(results / "summary.csv")
    assert set(summary["system"]) == set(experiment["systems"])
    assert set(summary["task"]) == set(experiment["tasks"])
    of_recipes = (pl.col("system") == "recent") | (pl.col("task") == "meeting")
    new = summary.filter(of_recipes, pl.col("depth_percent").is_null())
    assert new["n"].min() == experiment["samples"]
    density = summary.filter(pl.col("system") == "recent")["decode_density"].drop_nulls()
    assert 0 < density.min() <= density.max() < 1
    assert "recent" in set(pl.read_csv(results / "plan.csv")["system"])
    # The answers to the first two tasks come from the store.
    generated = read_record(results / "predictions/dense.parquet")["answers"]["generated"]
    assert generated == len(experiment["lengths"]) * experiment["samples"]


def test_a_new_model_source_gives_the_same_answers(extended: Project):
    experiment = yaml.safe_load((extended.root / "small.yaml").read_text())
    prediction = extended.root / "results/small/predictions/dense.parquet"
    before = pl.read_parquet(prediction)
    add(SOURCE, extended.root)
    experiment["systems"] = {"dense": {"model": "base"}}
    experiment["models"] = {}
    for part in ("gates", "finetune_data"):
        experiment.pop(part)
    extended.write(merge(experiment, SOURCE))
    shutil.rmtree(extended.root / "results")
    run(extended, "small.yaml", str(prediction.relative_to(extended.root)))
    assert pl.read_parquet(prediction).equals(before)


def test_a_new_figure_is_drawn_by_the_run(extended: Project):
    add(FIGURE, extended.root)
    log = run(extended, "small.yaml")
    for kind in ("html", "svg", "png"):
        assert (extended.root / f"results/small/figures/overall.{kind}").stat().st_size > 0
    assert "evaluate_system" not in log
    report = extended.snakemake("--configfile", "small.yaml", "--report", "report.html")
    assert report.returncode == 0, report.stdout + report.stderr
    assert "over all tasks and lengths" in (extended.root / "report.html").read_text()
