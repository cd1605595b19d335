"""`needlework ...`: run an experiment, plan it, ask where a result comes from, check that it still
holds; or put one model to a needle or a text at once."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.tree import Tree

from needlework.config.parsing.load import read_experiment
from needlework.config.reference import reference
from needlework.config.schema import experiment_schema
from needlework.pipeline import provenance
from needlework.pipeline.runner import due, run_workflow
from needlework.tasks.preflight import preflight


class Mode(StrEnum):
    """How a text is read."""

    exact = "exact"
    strided = "strided"


Model = Annotated[
    str,
    typer.Option(
        help="A checkpoint's folder or hub name, or its keys as in an experiment file, such as "
        "'{path: DIR, dtype: bfloat16, quantization: nf4}'."
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="Put on the model: a type, or its keys as in an experiment file, such as "
        "'{type: sketchwalk, density: 0.2}'. The model's own if left out."
    ),
]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
# Piped, long paths stay whole.
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 300)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    configfile: Annotated[
        Path | None, typer.Option(help="The experiment file, `config.yaml` if left out.")
    ] = None,
    cores: Annotated[str, typer.Option(help="Cores to use: a number or `all`.")] = "all",
) -> None:
    """Run an experiment, `needlework run FILE`, to its report, verify it, and say where that is.

    Picks up after a killed run by itself. Further options go to snakemake as they are.
    """
    # The client of APIs takes a second to import, and the other commands do not need it.
    from needlework.evaluation.api.preflight import missing_keys, require_keys

    if configfile is None:
        # No argument of its own: it would take the value of an option of snakemake's.
        is_named = context.args and not context.args[0].startswith("-")
        configfile = Path(context.args.pop(0) if is_named else "config.yaml")
    experiment = read_experiment(configfile)
    preflight(experiment, fetch=True)
    results = Path("results") / experiment.experiment
    if missing := missing_keys(experiment):
        require_keys(experiment, results, missing, due(configfile, context.args))
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
    result = provenance.verify(folder)
    for path, problem in result.invalid.items():
        console.print(f"[bold red]invalid[/bold red] {path} {problem}")
        for figure in result.figures[path]:
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
def plan(
    configfile: Annotated[Path, typer.Argument(help="An experiment file.")] = Path("config.yaml"),
    device: Annotated[
        str | None,
        typer.Option(
            help="One of resources/devices.yaml, or `here`: this machine, measured. The "
            "experiment's own if left out."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a row a cell.")] = False,
) -> None:
    """Say what an experiment costs before any weight is loaded: bytes, operations, hours, and
    whether it fits on a device or what would make it fit."""
    # torch takes seconds to import, and the other commands do not need it.
    from needlework.planning import render
    from needlework.planning.device_probe import device as find_device
    from needlework.planning.plan import plan as make_plan

    experiment = read_experiment(configfile)
    name = device or experiment.device
    place = find_device(name)
    found = make_plan(experiment, place)
    if as_json:
        print(json.dumps({"device": name, "rows": found.to_dicts()}, indent=1))
        return
    console.print(render.table(found, name, place))
    for line in (*render.verdicts(found, name), render.totals(found)):
        console.print(line)


@app.command()
def niah(
    model: Model,
    context_length: Annotated[
        int, typer.Option(min=1, help="Tokens of prompt and answer together.")
    ] = 4096,
    attention: Attention = None,
    depth_percent: Annotated[
        list[float],
        typer.Option(help="Where the needle stands, 0 is the start; again for several."),
    ] = (50.0,),
    num_shots: Annotated[int, typer.Option(help="Worked examples before it, 0-3.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 10,
    num_digits: Annotated[int, typer.Option(help="Digits of a pass key.")] = 5,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens that an answer may have.")] = 30,
    task: Annotated[
        str | None,
        typer.Option(
            help="Another task than pass keys: its type, or its keys as in an experiment file, "
            "such as niah_single_1 or '{type: niah, haystack: needle}'."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 42,
) -> None:
    """Hide a needle in a haystack and ask one model for it: inputs (shortened around the needle),
    generations, success and its 95 % interval.

    Samples, answers and scores are those that an experiment makes of the same keys.

    needlework niah --model DIR --attention infini --context-length 8192 --depth-percent 25
    """
    from needlework.cli.inline_experiment import mapping
    from needlework.cli.niah import ask

    asked = {"type": "passkey", "digits": num_digits, "shots": num_shots}
    if task is not None:
        asked = mapping("--task", task, "type")
    put_on = None if attention is None else mapping("--attention", attention, "type")
    for line in ask(
        mapping("--model", model, "path"),
        put_on,
        {"max_new_tokens": max_new_tokens, **asked},
        length=context_length,
        depths=list(depth_percent),
        count=samples,
        seed=seed,
    ):
        console.print(line, markup=False)


@app.command()
def stream(
    file: Annotated[str, typer.Argument(help="Text, tokens, a table, a dataset, a hub's name.")],
    model: Model,
    attention: Attention = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="exact carries state or a cache along; strided reads windows anew, each with "
            "--overlap tokens of the one before."
        ),
    ] = Mode.exact,
    chunk_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens a forward; the model's own if left out.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, help="Of strided windows; half of them if left out.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Most tokens to read.")] = None,
    column: Annotated[str | None, typer.Option(help="Of a table; input_ids or text.")] = None,
    separate_documents: Annotated[
        bool, typer.Option(help="Begin each document with no context.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the tables; results/stream/NAME if left out.")
    ] = None,
) -> None:
    """Read a text of any length through one model: perplexity, speed, memory, and tables of them by
    chunk and by position.

    A run that was killed goes on when the same command is given again.

    needlework stream book.txt --model DIR --mode strided --chunk-size 2048
    """
    from needlework.cli.inline_experiment import mapping
    from needlework.cli.stream import read

    if mode is Mode.exact and overlap is not None:
        raise ValueError(f"--overlap {overlap}: is of strided windows; write --mode strided too")
    if mode is Mode.strided and chunk_size is None:
        raise ValueError("--mode strided: has windows of --chunk-size tokens; write it too")
    given = {
        "path": file,
        "column": column,
        "tokens": tokens,
        "separate_documents": separate_documents,
        "chunk_size": chunk_size,
    }
    if mode is Mode.strided:
        given["overlap"] = max(1, chunk_size // 2) if overlap is None else overlap
    put_on = None if attention is None else mapping("--attention", attention, "type")
    folder = output or Path("results") / "stream" / Path(file).stem
    for line in read(mapping("--model", model, "path"), put_on, given, folder):
        console.print(line, markup=False)


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
    weights = "".join(f"{name} at {at}, " for name, at in record.get("hub", {}).items())
    return (
        f"[dim]rule {record['rule']}, code {record['code']['version']}, {commit}{weights}"
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
