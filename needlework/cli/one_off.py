"""Commands that try one model without an experiment file: niah and stream."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from needlework.cli.terminal import console, path

Model = Annotated[
    str,
    typer.Option(
        help="A checkpoint folder or hub name, or a mapping as in an experiment file, such as "
        "'{path: DIR, dtype: bfloat16, quantization: nf4}'."
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="An attention method for the model: its type, or a mapping as in an experiment file, "
        "such as '{type: sketchwalk, density: 0.2}'. Default: the model's own attention."
    ),
]


class Mode(StrEnum):
    """How a text is read."""

    exact = "exact"
    strided = "strided"


class Bos(StrEnum):
    """Where BOS stands in a stream."""

    each_window = "each_window"
    first = "first"
    none = "none"


def niah(
    model: Model,
    context_length: Annotated[int, typer.Option(min=1, help="Tokens of prompt and answer.")] = 4096,
    attention: Attention = None,
    depth_percent: Annotated[
        list[float],
        typer.Option(
            help="Depth of the needle; 0 is the start of the context. Repeat it for several depths."
        ),
    ] = (50.0,),  # type: ignore[assignment]  # typer wants a list, ruff no mutable default
    num_shots: Annotated[int, typer.Option(help="Worked examples before the question, 0-3.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 10,
    num_digits: Annotated[int, typer.Option(help="Digits of a passkey.")] = 5,
    max_new_tokens: Annotated[int, typer.Option(help="Token limit of an answer.")] = 30,
    task: Annotated[
        str | None,
        typer.Option(
            help="A task other than passkey: its type, or a mapping as in an experiment file, "
            "such as niah_single_1 or '{type: niah, haystack: needle}'."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 42,
) -> None:
    """Test needle retrieval with one model: prompts (shortened around the needle), generations, and
    accuracy with its 95 % interval.

    Samples, answers and scores equal those of an experiment with the same settings.

    needlework niah --model DIR --attention infini --context-length 8192 --depth-percent 25
    """
    from needlework.cli.inline_experiment import parse_mapping
    from needlework.cli.niah import evaluate

    task_keys: dict[str, Any] = {"type": "passkey", "digits": num_digits, "shots": num_shots}
    if task is not None:
        task_keys = parse_mapping("--task", task, "type")
    for line in evaluate(
        parse_mapping("--model", model, "path"),
        None if attention is None else parse_mapping("--attention", attention, "type"),
        {"max_new_tokens": max_new_tokens, **task_keys},
        length=context_length,
        depths=list(depth_percent),
        count=samples,
        seed=seed,
    ):
        console.print(line, markup=False)


def stream(
    file: Annotated[
        str, typer.Argument(help="A text, token, table or dataset file, or a hub dataset.")
    ],
    model: Model,
    attention: Attention = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="exact: carry the state or cache from chunk to chunk. strided: independent "
            "windows, each with --overlap tokens of the one before."
        ),
    ] = Mode.exact,
    chunk_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens per forward pass. Default: the model's own.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, help="Overlap of strided windows. Default: half of them.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Read at most this many.")] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of a table. Default: input_ids or text.")
    ] = None,
    separate_documents: Annotated[
        bool, typer.Option(help="Start each document with an empty context.")
    ] = False,
    bos: Annotated[
        Bos,
        typer.Option(
            help="Where BOS stands. each_window: at the start of each document and strided window, "
            "as models such as Gemma need. first: at the start of each document, if the tokenizer "
            "adds it. none: nowhere."
        ),
    ] = Bos.first,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the tables. Default: results/stream/NAME.", parser=path),
    ] = None,
) -> None:
    """Measure perplexity, speed and memory of one model on a text of any length.

    Writes tables by chunk and by position. Rerun the same command to resume an interrupted run.

    needlework stream book.txt --model DIR --mode strided --chunk-size 2048
    """
    from needlework.cli.inline_experiment import parse_mapping
    from needlework.cli.stream import evaluate_stream

    if mode is Mode.exact and overlap is not None:
        raise ValueError(f"--overlap {overlap}: requires --mode strided; add it or omit --overlap")
    if mode is Mode.strided and chunk_size is None:
        raise ValueError("--mode strided: requires --chunk-size, the tokens of a window; add it")
    settings = {
        "path": file,
        "column": column,
        "tokens": tokens,
        "separate_documents": separate_documents,
        "chunk_size": chunk_size,
        "bos": bos.value,
    }
    if mode is Mode.strided and chunk_size is not None:
        settings["overlap"] = max(1, chunk_size // 2) if overlap is None else overlap
    for line in evaluate_stream(
        parse_mapping("--model", model, "path"),
        None if attention is None else parse_mapping("--attention", attention, "type"),
        settings,
        output or Path("results") / "stream" / Path(file).stem,
    ):
        console.print(line, markup=False)
