"""`needlework ...`: run an experiment, ask where a result comes from, check that it still holds."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.tree import Tree

from needlework import provenance
from needlework.config.load import read_experiment
from needlework.config.reference import reference
from needlework.config.schema import experiment_schema
from needlework.runner import run_workflow
from needlework.tasks.preflight import preflight

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
# Piped, long paths stay whole.
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 300)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    configfile: Annotated[Path, typer.Option(help="The experiment file.")] = Path("config.yaml"),
    cores: Annotated[str, typer.Option(help="Cores to use: a number or `all`.")] = "all",
) -> None:
    """Run an experiment to its report, verify it, and say where the report is.

    Picks up after a killed run by itself. Further options go to snakemake as they are.
    """
    experiment = read_experiment(configfile)
    preflight(experiment)
    results = Path("results") / experiment.experiment
    report = run_workflow(configfile, results, cores, context.args)
    verify(results)
    console.print(f"\nThe report: [bold]{report.resolve()}[/bold]")


@app.command()
def lineage(file: Annotated[Path, typer.Argument(help="A file under results/.")]) -> None:
    """Print what a file was made from: rules, parameters, code and hashes, down to the sources."""
    tree = Tree("")
    _grow(tree, [provenance.lineage(file)], set())
    for child in tree.children:
        console.print(child)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A results folder, such as results/quick.")],
) -> None:
    """Recompute every hash; name the first link that does not hold and what stands on it."""
    found = provenance.verify(folder)
    for path, what in found.broken.items():
        console.print(f"[bold red]broken[/bold red] {path} {what}")
        for figure in found.figures[path]:
            console.print(f"       on it stands {figure}")
    if found.broken:
        first = next(iter(found.broken))
        console.print(
            f"{len(found.broken)} of {found.checked} files do not hold; to make the first anew, "
            f"and what stands on it, add to the run:\n--forcerun {first}"
        )
        raise typer.Exit(1)
    console.print(f"{found.checked} files verified: every hash under {folder} holds")


@app.command()
def check(
    configfile: Annotated[Path, typer.Argument(help="An experiment file.")],
) -> None:
    """Check an experiment file: names, types, combinations, and that tasks fit their lengths."""
    experiment = read_experiment(configfile)
    preflight(experiment)
    cells = len(experiment.systems) * len(experiment.tasks) * len(experiment.lengths)
    console.print(
        f"{configfile}: holds; {len(experiment.systems)} systems x {len(experiment.tasks)} tasks x "
        f"{len(experiment.lengths)} lengths, {cells * experiment.samples} answers"
    )


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option(help="The reference page instead.")] = False,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    print(reference().rstrip() if markdown else json.dumps(experiment_schema(), indent=2))


def _grow(tree: Tree, nodes: list[provenance.Node], shown: set[str]) -> None:
    """Add `nodes` to `tree`, those that one job made together under one branch."""
    jobs: dict[str, list[provenance.Node]] = {}
    for node in nodes:
        job = "source" if node.record is None else str(sorted(node.record["outputs"].items()))
        jobs.setdefault(job, []).append(node)
    for job, made in jobs.items():
        if job == "source":
            for node in made:
                tree.add(f"{node.path}  [dim]source[/dim]")
            continue
        record = made[0].record
        lines = [
            f"[bold]{node.path}[/bold]  sha256 {record['outputs'][node.path][:12]}" for node in made
        ]
        if job in shown:
            tree.add("\n".join(lines) + "  [dim](as above)[/dim]")
            continue
        shown.add(job)
        _grow(tree.add("\n".join([*lines, _job(record)])), made[0].parents, shown)


def _job(record: dict) -> str:
    git = record["git"]
    commit = (
        f"commit {git['commit'][:10]}{' with changes' if git['changed'] else ''}, " if git else ""
    )
    return (
        f"[dim]rule {record['rule']}, code {record['code']['version']}, {commit}"
        f"{record['started']}, {record['seconds']} s on {record['device']}[/dim]"
    )


def main() -> None:
    """The console command: what the user has to mend is one line, not a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(f"needlework: {error}")
    except KeyboardInterrupt:
        sys.exit("needlework: interrupted; run again to go on from here")
