"""The exact set of jobs that each kind of change reruns."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.project_copy import Project

pytestmark = pytest.mark.workflow

SYSTEMS = ["dense", "random", "sketchwalk", "seer", "infini"]
TASKS = ["passkey", "niah"]
LENGTHS = [128, 256]

# Jobs are named by rule and wildcards: "generate_samples base passkey 128".
SUMMARIES = {"summarize_scores", "find_effective_length", "compare_systems", "show_tables"}
SUMMARIES |= {f"plot_{name}" for name in ("accuracy", "effective_length", "pareto", "finetuning")}
SUMMARIES |= {f"plot_heatmap {task}" for task in TASKS}
MEASURED = {"compare_speed", "plot_cost", "plot_memory"}


CONFIG_RECORDS = {"record_experiment", "plan_experiment"}
ROW_CHECKS = {"check_training_rows base rows", "check_training_rows base of_task"}


def sampled(tasks: list[str], lengths: list[int]) -> set[str]:
    return ROW_CHECKS | {f"generate_samples base {task} {n}" for task in tasks for n in lengths}


def answered(systems: list[str]) -> set[str]:
    """Jobs that follow from new answers of these systems."""
    jobs = {f"{rule} {s}" for rule in ("evaluate_system", "score_predictions") for s in systems}
    jobs |= {"plot_density"} if {*systems} - {"dense", "infini"} else set()
    return jobs | SUMMARIES | MEASURED


def append_comment(name: str) -> Callable[[Project], None]:
    """Append a comment to a file, which changes its hash but not its meaning."""

    def change(project: Project) -> None:
        with (project.root / name).open("a") as file:
            file.write("\n# changed\n")

    return change


def reconfigure(*where: str | int, to: object) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        experiment = yaml.safe_load((project.root / "small.yaml").read_text())
        part = experiment
        for key in where[:-1]:
            part = part[key]
        part[where[-1]] = to
        project.write(experiment)

    return change


def touch_everything(project: Project) -> None:
    # Inputs get later times than their outputs.
    files = [p for p in sorted(project.root.rglob("*")) if ".snakemake" not in p.parts]
    assert len(files) > 300
    for i, path in enumerate(reversed(files)):
        os.utime(path, (2_000_000_000 + i, 2_000_000_000 + i))


def nothing(project: Project) -> None:
    assert (project.root / "results/small/figures/accuracy.svg").is_file()


SKETCHWALK = {"type": "sketchwalk", "block_size": 32, "density": 0.25, "dense_layers": 1}
TRAINING_FIGURES = {"plot_training", "plot_training_cost"}
FINETUNING = {"generate_finetune_data base rows", "finetune_model infini"} | TRAINING_FIGURES
DISTILLATION = {"generate_finetune_data base of_task", "distill_gates own"} | TRAINING_FIGURES
FIGURES = {f"plot_{name}" for name in ("accuracy", "density", "pareto", "finetuning")}
FIGURES |= TRAINING_FIGURES | {"plot_cost", "plot_memory", "plot_effective_length"}
FIGURES |= {f"plot_heatmap {task}" for task in TASKS}

CASES = {
    "nothing changed": (nothing, set()),
    "every file touched": (touch_everything, set()),
    "a caption": (append_comment("workflow/report/accuracy.rst"), set()),
    "a comment in the experiment": (append_comment("small.yaml"), set()),
    "a description of a parameter": (append_comment("needlework/config/attention/base.py"), set()),
    "the runner": (append_comment("needlework/pipeline/runner.py"), set()),
    "one figure": (
        append_comment("needlework/figures/heatmap.py"),
        {f"plot_heatmap {task}" for task in TASKS},
    ),
    "the style of figures": (append_comment("needlework/figures/style/theme.py"), FIGURES),
    "attention/sketchwalk.py": (
        append_comment("needlework/attention/methods/sketchwalk.py"),
        answered(["sketchwalk"]),
    ),
    "attention/seer.py": (
        append_comment("needlework/attention/methods/seer.py"),
        answered(["seer"]),
    ),
    "attention/seer_gates.py": (
        append_comment("needlework/attention/seer/gates.py"),
        answered(["seer"]) | {"distill_gates own"} | TRAINING_FIGURES,
    ),
    "distillation": (
        append_comment("needlework/training/distill/gates.py"),
        answered(["seer"]) | {"distill_gates own"} | TRAINING_FIGURES,
    ),
    "attention/infini.py": (
        append_comment("needlework/attention/methods/infini.py"),
        answered(["infini"]) | {"finetune_model infini"} | TRAINING_FIGURES,
    ),
    "a task": (
        append_comment("needlework/tasks/niah.py"),
        sampled(["niah"], LENGTHS) | answered(SYSTEMS),
    ),
    # passkey.py also makes training rows.
    "a task that is trained on": (
        append_comment("needlework/tasks/passkey.py"),
        sampled(["passkey"], LENGTHS) | FINETUNING | DISTILLATION | answered(SYSTEMS),
    ),
    "scoring": (
        append_comment("needlework/scoring/score.py"),
        {job for job in answered(SYSTEMS) if not job.startswith("evaluate")}
        - {*MEASURED, "plot_density"},
    ),
    "comparing": (
        append_comment("needlework/scoring/compare.py"),
        {"compare_systems", "compare_speed", "show_tables"},
    ),
    "a script": (append_comment("workflow/scripts/show_tables.py"), {"show_tables"}),
    "the script of all figures": (append_comment("workflow/scripts/plot_figure.py"), FIGURES),
    "an option of a system": (
        reconfigure("systems", "sketchwalk", "attention", "block_size", to=8),
        answered(["sketchwalk"]) | CONFIG_RECORDS,
    ),
    "an option of training": (
        reconfigure("models", "infini", "finetune", "steps", to=3),
        answered(["infini"]) | {"finetune_model infini"} | CONFIG_RECORDS | TRAINING_FIGURES,
    ),
    "an option of gates": (
        reconfigure("gates", "own", "distill", "learning_rate", to=0.5),
        answered(["seer"]) | {"distill_gates own", *CONFIG_RECORDS} | TRAINING_FIGURES,
    ),
    "an option of a task": (
        reconfigure("tasks", "passkey", "digits", to=4),
        sampled(["passkey"], LENGTHS) | DISTILLATION | answered(SYSTEMS) | CONFIG_RECORDS,
    ),
    "a new length": (
        reconfigure("lengths", to=[*LENGTHS, 192]),
        sampled(TASKS, [192]) | answered(SYSTEMS) | CONFIG_RECORDS,
    ),
    "a new system": (
        reconfigure("systems", "walk32", to={"model": "base", "attention": SKETCHWALK}),
        answered(["walk32"]) | CONFIG_RECORDS,
    ),
    "an option of effective lengths": (
        reconfigure("effective_length", to={"score": 0.5}),
        {"find_effective_length", "plot_effective_length", "show_tables", *CONFIG_RECORDS},
    ),
    "another baseline": (
        reconfigure("baseline", to="random"),
        {"compare_systems", "compare_speed", "show_tables", *CONFIG_RECORDS},
    ),
}


def planned(project: Project) -> set[str]:
    """Jobs that `snakemake -n` would run, except `all`."""
    done = project.snakemake("-n", "--configfile", "small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = set()
    for block in re.split(r"^(?:local)?rule ", done.stdout, flags=re.MULTILINE)[1:]:
        rule = block.partition(":")[0]
        wildcards = re.search(r"^    wildcards: (.*)$", block, flags=re.MULTILINE)
        values = re.findall(r"\w+=([^,\s]+)", wildcards[1]) if wildcards else []
        jobs.add(" ".join([rule, *values]))
    if not jobs:
        assert "Nothing to be done" in done.stdout
    return jobs - {"all"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_a_change_reruns_exactly(finished: Project, tmp_path: Path, case: str):
    change, expected = CASES[case]
    project = finished.copy(tmp_path / "copy")
    change(project)
    assert planned(project) == expected


@pytest.mark.timeout(900)
def test_a_clone_with_results_and_state_reruns_nothing(finished: Project, tmp_path: Path):
    # Unlike copy(), with new modification times.
    shutil.copytree(finished.root, tmp_path / "clone", copy_function=shutil.copy)
    assert planned(Project(tmp_path / "clone")) == set()
