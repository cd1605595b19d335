"""Measure how well language models use long contexts.

Write an experiment file (init), check and plan it, run it to a verified report; trace and verify
results; or try one model without an experiment file (niah, stream).
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from needlework.cli.lineage_tree import lineage_trees
from needlework.cli.one_off import niah, stream
from needlework.cli.terminal import console, error_console, path
from needlework.config.experiment import Experiment
from needlework.config.parsing.load import read_experiment
from needlework.config.reference import reference
from needlework.config.schema import experiment_schema
from needlework.pipeline import provenance, runner
from needlework.tasks.preflight import preflight

ConfigFile = Annotated[Path, typer.Argument(help="An experiment file.", parser=path)]
Cores = Annotated[str, typer.Option(help="CPU cores to use: a number or `all`.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show Snakemake's output instead of a progress bar.")
]
PASSES_OPTIONS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
DEFAULT_FILE = Path("config.yaml")

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def init(
    configfile: Annotated[Path, typer.Argument(help="The experiment file to write.", parser=path)],
    model: Annotated[str, typer.Option(help="A checkpoint folder or hub name (owner/name).")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a short experiment file for a model: two tasks, dense and sparse attention, and lengths
    that run in about an hour on this machine.

    needlework init mine.yaml --model /models/my-checkpoint
    """
    # Commands import torch only when they need it; it takes seconds.
    from needlework.cli.init import write_experiment
    from needlework.planning.render import duration

    grid = write_experiment(configfile, str(path(model)), force=force)
    lengths = ", ".join(f"{length:,}" for length in grid.lengths)
    console.print(f"{configfile}: {grid.samples} samples per task at {lengths} tokens")
    if grid.seconds is not None:
        console.print(f"Estimated time on this machine: at most {duration(grid.seconds)}")
    console.print(f"Next: [bold]needlework run {configfile}[/bold]")


@app.command()
def check(configfile: ConfigFile) -> None:
    """Check an experiment file: keys, types, combinations, and that tasks fit their lengths."""
    experiment = read_experiment(configfile)
    preflight(experiment)
    _warn(experiment)
    cells = len(experiment.systems) * len(experiment.tasks) * len(experiment.lengths)
    console.print(
        f"{configfile}: valid; {len(experiment.systems)} systems x {len(experiment.tasks)} tasks x "
        f"{len(experiment.lengths)} lengths, {cells * experiment.samples} answers"
    )


@app.command(context_settings=PASSES_OPTIONS_ON)
def run(
    context: typer.Context,
    configfile: Annotated[
        Path | None, typer.Option(help="The experiment file. Default: `config.yaml`.", parser=path)
    ] = None,
    cores: Cores = "all",
    verbose: Verbose = False,
) -> None:
    """Run an experiment, verify the results and write the report.

    Rerun the same command to resume an interrupted run. Other options are passed on to snakemake.

    needlework run mine.yaml
    """
    configfile = _configfile(configfile, context.args)
    experiment = _prepare(configfile, context.args)
    if runner.only_prints(context.args):
        runner.print_workflow(configfile, cores, context.args)
        return
    results = _results(experiment)
    runner.run_workflow(
        configfile, results, cores, context.args, console=error_console, verbose=verbose
    )
    report = runner.write_report(configfile, results)
    verify(results)
    console.print(f"Log: {runner.run_log(results)}")
    console.print(f"Report: [bold]{report.resolve()}[/bold]")


@app.command(context_settings=PASSES_OPTIONS_ON)
def export(
    context: typer.Context,
    configfile: Annotated[
        Path | None, typer.Option(help="The experiment file. Default: `config.yaml`.", parser=path)
    ] = None,
    cores: Cores = "all",
    verbose: Verbose = False,
) -> None:
    """Write samples and predictions in the formats of RULER, kvpress and `datasets`.

    Runs what is missing first. Other options are passed on to snakemake.

    needlework export mine.yaml
    """
    configfile = _configfile(configfile, context.args)
    options = ["export", *context.args]
    experiment = _prepare(configfile, options)
    results = _results(experiment)
    if runner.only_prints(options):
        runner.print_workflow(configfile, cores, options)
        return
    runner.run_workflow(configfile, results, cores, options, console=error_console, verbose=verbose)
    console.print(f"Exported to [bold]{(results / 'export').resolve()}[/bold]")


@app.command()
def lineage(
    file: Annotated[Path, typer.Argument(help="A file in results/.", parser=path)],
) -> None:
    """Show what a file was made from: rules, code, hashes and devices, down to the sources."""
    for tree in lineage_trees(provenance.lineage(file)):
        console.print(tree)


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(help="A results folder, such as results/quick.", parser=path)
    ],
) -> None:
    """Recompute every hash in a results folder; list invalid files and dependent figures."""
    result = provenance.verify(folder)
    for file, problem in result.invalid.items():
        console.print(f"[bold red]invalid[/bold red] {file} {problem}")
        for figure in result.figures[file]:
            console.print(f"        depends on it: {figure}")
    if result.invalid:
        first = next(iter(result.invalid))
        console.print(
            f"{len(result.invalid)} of {result.checked} files are invalid; to rebuild the first "
            f"and everything that depends on it, add to the run:\n--forcerun {first}"
        )
        raise typer.Exit(1)
    console.print(f"{result.checked} files verified: every hash in {folder} is valid")


@app.command()
def answers(
    prune: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Delete the answers of systems that no run has used for this many days.",
        ),
    ] = None,
) -> None:
    """List the stored answers, which every run in this folder takes instead of new ones."""
    from needlework.cli.answers import describe

    for line in describe(Path("results") / ".answers", prune):
        console.print(line, markup=False)


@app.command()
def plan(
    configfile: ConfigFile = DEFAULT_FILE,
    device: Annotated[
        str | None,
        typer.Option(
            help="A device of resources/devices.yaml, or `here` to measure this machine. "
            "Default: the experiment's `device`."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one row for each system and length.")
    ] = False,
) -> None:
    """Estimate memory, operations, time and price of an experiment, without loading weights.

    Says whether each system fits the device, and what would make it fit.
    """
    from needlework.planning import render
    from needlework.planning.device_probe import device as find_device
    from needlework.planning.plan import plan as make_plan

    experiment = read_experiment(configfile)
    name = device or experiment.device
    place = find_device(name)
    rows = make_plan(experiment, place)
    if as_json:
        print(json.dumps({"device": name, "rows": rows.to_dicts()}, indent=1))
        return
    if rows["peak_bytes"].count():
        console.print(render.table(rows, name, place))
    for line in (*render.verdicts(rows, name), render.totals(rows)):
        console.print(line)


app.command()(niah)
app.command()(stream)


@app.command()
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference page config/README.md instead.")
    ] = False,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    print(reference().rstrip() if markdown else json.dumps(experiment_schema(), indent=2))


def _configfile(named: Path | None, args: list[str]) -> Path:
    """The experiment file of the command line; a leading file name is removed from `args`.

    It is no typer argument: that would take the value of a snakemake option, such as
    `--forcerun RULE`.
    """
    if named is not None:
        return named
    if args and not args[0].startswith("-"):
        return path(args.pop(0))
    if not DEFAULT_FILE.is_file():
        raise ValueError(
            f"{DEFAULT_FILE}: no such file; name an experiment file, or write one with "
            "`needlework init mine.yaml --model PATH`"
        )
    return DEFAULT_FILE


def _prepare(configfile: Path, options: list[str]) -> Experiment:
    """Read and check an experiment file, and check that API keys of pending requests are set."""
    # The API client takes a second to import.
    from needlework.evaluation.api.preflight import missing_keys, require_keys

    experiment = read_experiment(configfile)
    preflight(experiment, fetch=True)
    _warn(experiment, fetch=True)
    if missing := missing_keys(experiment):
        pending = runner.pending_outputs(configfile, options)
        require_keys(experiment, _results(experiment), missing, pending)
    return experiment


def _results(experiment: Experiment) -> Path:
    return Path("results") / experiment.experiment


def _warn(experiment: Experiment, fetch: bool = False) -> None:
    from needlework.cli.warnings import warnings

    for line in warnings(experiment, fetch):
        error_console.print(f"[yellow]warning:[/yellow] {escape(line)}")


def main() -> None:
    """Run the command; user errors are lines without a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit("\n".join(f"needlework: {line}" for line in str(error).splitlines()))
    except KeyboardInterrupt:
        sys.exit("needlework: interrupted; run the same command again to resume")
