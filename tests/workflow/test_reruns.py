"""What runs again after a change: the exact set of jobs, told by hand for each."""

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

# Jobs are named by rule and wildcards: "evaluate_system dense passkey 128".
COMPARED = {"summarize_scores", "find_effective_length", "compare_systems", "show_tables"}
COMPARED |= {f"plot_{name}" for name in ("accuracy", "effective_length", "pareto", "finetuning")}
COMPARED |= {f"plot_heatmap {task}" for task in TASKS}
TIMED = {"compare_speed", "plot_cost", "plot_memory"}


RECORDED = {"record_experiment", "plan_experiment"}
CHECKED = {"check_training_rows base rows", "check_training_rows base of_task"}


def sampled(tasks: list[str], lengths: list[int]) -> set[str]:
    # Prompts are measured to plan.
    return (
        CHECKED
        | {"plan_experiment"}
        | {f"generate_samples base {task} {n}" for task in tasks for n in lengths}
    )


def answered(
    systems: list[str], tasks: list[str] = TASKS, lengths: list[int] = LENGTHS
) -> set[str]:
    """All that follows from new answers in these cells."""
    cells = [f"{s} {task} {length}" for s in systems for task in tasks for length in lengths]
    jobs = {f"{rule} {cell}" for rule in ("evaluate_system", "score_predictions") for cell in cells}
    jobs |= {"plot_density"} if {*systems} - {"dense", "infini"} else set()
    return jobs | COMPARED | TIMED


def write_more(name: str) -> Callable[[Project], None]:
    """Change a file in a way that means nothing, were it only read well enough."""

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
    # Inputs get later times than what was made from them.
    files = [p for p in sorted(project.root.rglob("*")) if ".snakemake" not in p.parts]
    assert len(files) > 300
    for i, path in enumerate(reversed(files)):
        os.utime(path, (2_000_000_000 + i, 2_000_000_000 + i))


def nothing(project: Project) -> None:
    assert (project.root / "results/small/figures/accuracy.svg").is_file()


WALK = {"type": "sketchwalk", "block_size": 32, "density": 0.25, "dense_layers": 1}
TRAINED = {"plot_training", "plot_training_cost"}
TUNED = {"generate_finetune_data base rows", "finetune_model infini"} | TRAINED
DISTILLED = {"generate_finetune_data base of_task", "distill_gates own"} | TRAINED
FIGURES = {f"plot_{name}" for name in ("accuracy", "density", "pareto", "finetuning")}
FIGURES |= TRAINED | {"plot_cost", "plot_memory", "plot_effective_length"}
FIGURES |= {f"plot_heatmap {task}" for task in TASKS}

CASES = {
    "nothing changed": (nothing, set()),
    "every file touched": (touch_everything, set()),
    "a caption": (write_more("workflow/report/accuracy.rst"), set()),
    "a comment in the experiment": (write_more("small.yaml"), set()),
    "a description of a parameter": (write_more("needlework/config/attention.py"), set()),
    "the runner": (write_more("needlework/pipeline/runner.py"), set()),
    "one chart": (
        write_more("needlework/figures/heatmap.py"),
        {f"plot_heatmap {task}" for task in TASKS},
    ),
    "what charts share": (write_more("needlework/figures/style/theme.py"), FIGURES),
    "attention/sketchwalk.py": (
        write_more("needlework/attention/methods/sketchwalk.py"),
        answered(["sketchwalk"]),
    ),
    "attention/seer.py": (write_more("needlework/attention/methods/seer.py"), answered(["seer"])),
    "attention/seer_gates.py": (
        write_more("needlework/attention/seer/gates.py"),
        answered(["seer"]) | {"distill_gates own"} | TRAINED,
    ),
    "distillation": (
        write_more("needlework/training/distill/gates.py"),
        answered(["seer"]) | {"distill_gates own"} | TRAINED,
    ),
    "attention/infini.py": (
        write_more("needlework/attention/methods/infini.py"),
        answered(["infini"]) | {"finetune_model infini"} | TRAINED,
    ),
    "a task": (
        write_more("needlework/tasks/niah.py"),
        sampled(["niah"], LENGTHS) | answered(SYSTEMS, ["niah"]),
    ),
    # passkey.py makes the rows to train on, too.
    "a task that is trained on": (
        write_more("needlework/tasks/passkey.py"),
        sampled(["passkey"], LENGTHS)
        | TUNED
        | DISTILLED
        | answered(SYSTEMS, ["passkey"])
        | answered(["seer", "infini"]),
    ),
    "scoring": (
        write_more("needlework/scoring/score.py"),
        {job for job in answered(SYSTEMS) if not job.startswith("evaluate")}
        - {*TIMED, "plot_density"},
    ),
    "comparing": (
        write_more("needlework/scoring/compare.py"),
        {"compare_systems", "compare_speed", "show_tables"},
    ),
    "a script": (write_more("workflow/scripts/show_tables.py"), {"show_tables"}),
    "the script of all figures": (write_more("workflow/scripts/plot_figure.py"), FIGURES),
    "an option of a system": (
        reconfigure("systems", "sketchwalk", "attention", "block_size", to=8),
        answered(["sketchwalk"]) | RECORDED,
    ),
    "an option of training": (
        reconfigure("models", "infini", "finetune", "steps", to=3),
        answered(["infini"]) | {"finetune_model infini"} | RECORDED | TRAINED,
    ),
    "an option of gates": (
        reconfigure("gates", "own", "distill", "learning_rate", to=0.5),
        answered(["seer"]) | {"distill_gates own", *RECORDED} | TRAINED,
    ),
    "an option of a task": (
        reconfigure("tasks", "passkey", "digits", to=4),
        sampled(["passkey"], LENGTHS)
        | DISTILLED
        | answered(SYSTEMS, ["passkey"])
        | answered(["seer"])
        | RECORDED,
    ),
    "a new length": (
        reconfigure("lengths", to=[*LENGTHS, 192]),
        sampled(TASKS, [192]) | answered(SYSTEMS, lengths=[192]) | RECORDED,
    ),
    "a new system": (
        reconfigure("systems", "walk32", to={"model": "base", "attention": WALK}),
        answered(["walk32"]) | RECORDED,
    ),
    "what an effective length is": (
        reconfigure("effective_length", to={"score": 0.5}),
        {"find_effective_length", "plot_effective_length", "show_tables", *RECORDED},
    ),
    "another baseline": (
        reconfigure("baseline", to="random"),
        {"compare_systems", "compare_speed", "show_tables", *RECORDED},
    ),
}


def planned(project: Project) -> set[str]:
    """Jobs that `snakemake -n` would run, `all` aside."""
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
    # Unlike copy(), with new times: those of the clone are no older than its results.
    shutil.copytree(finished.root, tmp_path / "clone", copy_function=shutil.copy)
    assert planned(Project(tmp_path / "clone")) == set()
