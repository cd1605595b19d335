"""`needlework init`: an experiment file for one model, sized for this machine."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch
import yaml

from needlework.cli.warnings import has_chat_template
from needlework.config.devices import Device, devices
from needlework.config.opening import ModelSpec
from needlework.config.parsing.load import load_experiment
from needlework.config.rope import positions_of
from needlework.models.checkpoint import open_config
from needlework.planning.device_probe import device as find_device
from needlework.planning.plan import plan
from needlework.tasks.preflight import preflight
from needlework.tasks.prompts.tokenizer import open_tokenizer, tokenizer_folder

MAX_SECONDS = 3600
_SHORTEST, _LONGEST, _MOST_LENGTHS = 128, 2**20, 6
_DEFAULT_SHORTEST = 512
_SAMPLES = (11, 4)
"""Samples of each cell: the second where the first leaves fewer than three lengths."""

_TEMPLATE = """\
# Written by `needlework init`. `needlework schema --markdown` explains every key.
experiment: {experiment} # results are in results/{experiment}/

models:
  {model}: {{path: {path}{options}}}

systems: # what is compared
  dense: {{model: {model}}}
{sparse}baseline: dense # the others are compared with it

tasks:
  passkey: {{type: passkey}} # a number in repeated filler
  niah_single_1: {{type: niah_single_1}} # RULER's needle in noise; see docs/tasks.md for more

lengths: [{lengths}] # tokens of prompt and answer{limit}
depths: {{linear: {samples}}} # positions of the needle in the context
samples: {samples} # of each task at each length; more make the intervals narrower
{device}"""

_SPARSE = """\
  sketchwalk: # sparse: reads a quarter of the blocks of keys
    model: {model}
    attention: {{type: sketchwalk, preset: box, block_size: 16, density: 0.25}}
  random: # control: as many blocks, chosen at random
    model: {model}
    attention: {{type: random, block_size: 16, density: 0.25}}
"""


class Grid(NamedTuple):
    """Lengths and samples of an experiment, and how long its plan takes at most."""

    lengths: list[int]
    samples: int
    seconds: float | None


class _Model(NamedTuple):
    path: str
    positions: int | None
    has_chat_template: bool
    has_own_attention: bool
    dtype: str


def write_experiment(file: Path, path: str, *, force: bool = False) -> Grid:
    """Write an experiment file for the model at `path`, a folder or a hub name.

    Its lengths are powers of two within the model's positions, and its plan takes at most
    MAX_SECONDS on this machine where that is possible.

    Raises:
        ValueError: `file` exists and `force` is off, or the model cannot be opened.
    """
    if file.exists() and not force:
        raise ValueError(f"{file}: exists already; choose another name, or add --force")
    machine = find_device("here")
    model = _inspect(path, machine)
    name = _name(Path(path).name)
    grid = _grid(file, name, model, machine)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_render(file, name, model, grid, machine))
    return grid


def _inspect(path: str, machine: Device) -> _Model:
    """What the checkpoint's files say; its weights are not read."""
    config = open_config(ModelSpec(path=path))
    open_tokenizer(path)
    text = config.get_text_config()
    return _Model(
        path=path,
        positions=positions_of(text.to_dict()),
        has_chat_template=has_chat_template(tokenizer_folder(path)),
        has_own_attention=getattr(config, "needlework_attention", None) is not None,
        dtype="bfloat16" if machine.gpu else "float32",
    )


def _grid(file: Path, name: str, model: _Model, machine: Device) -> Grid:
    """The longest lengths, and the most samples, that fit the model, the machine and the hour."""
    limit = min(model.positions or _LONGEST, _LONGEST)
    lengths = [2**k for k in range(_LONGEST.bit_length()) if _SHORTEST <= 2**k <= limit]
    if not lengths:
        raise ValueError(f"{model.path}: has {limit} positions, too few for any task")
    lengths = [n for n in lengths if n >= _DEFAULT_SHORTEST] or lengths[-1:]
    lengths = _feasible(file, name, model, lengths, machine)
    seconds = _seconds_of_a_sample(file, name, model, lengths, machine)
    grid = Grid(lengths[:3], _SAMPLES[-1], None)
    if seconds is None:
        return grid
    for samples in _SAMPLES:
        fitting = lengths[:1]
        while (
            len(fitting) < len(lengths)
            and samples * sum(seconds[n] for n in lengths[: len(fitting) + 1]) <= MAX_SECONDS
        ):
            fitting = lengths[: len(fitting) + 1]
        fitting = fitting[-_MOST_LENGTHS:]
        total = samples * sum(seconds[n] for n in fitting)
        grid = Grid(fitting, samples, total)
        if len(fitting) >= min(3, len(lengths)) and total <= MAX_SECONDS:
            return grid
    return grid


def _feasible(
    file: Path, name: str, model: _Model, lengths: list[int], machine: Device
) -> list[int]:
    """`lengths` without those that are too short for a task and its chat template."""
    for shortest in range(len(lengths)):
        grid = Grid(lengths[shortest:][:1], 1, None)
        try:
            text = _render(file, name, model, grid, machine)
            preflight(load_experiment(yaml.safe_load(text)), fetch=True)
        except ValueError:
            if shortest == len(lengths) - 1:
                raise
        else:
            return lengths[shortest:]
    return lengths


def _seconds_of_a_sample(
    file: Path, name: str, model: _Model, lengths: list[int], machine: Device
) -> dict[int, float] | None:
    """Planned seconds of one sample of every task and system, by length; None: unknown.

    Lengths that do not fit the machine are left out, except the shortest.
    """
    text = _render(file, name, model, Grid(lengths, 1, None), machine)
    rows = plan(load_experiment(yaml.safe_load(text)), machine, advise=False)
    if rows["seconds"].has_nulls():
        return None
    by_length = rows.group_by("length").agg(pl.col("seconds").sum(), pl.col("fits").all())
    seconds = {row["length"]: row["seconds"] for row in by_length.to_dicts() if row["fits"]}
    del lengths[max(1, sum(n in seconds for n in lengths)) :]
    return seconds if lengths[0] in seconds else None


def _render(file: Path, name: str, model: _Model, grid: Grid, machine: Device) -> str:
    options = ", chat_template: true" if model.has_chat_template else ""
    options += f", dtype: {model.dtype}" if model.dtype != "float32" else ""
    limit = f"; the model has {model.positions:,} positions" if model.positions else ""
    known = _known_device(machine)
    return _TEMPLATE.format(
        experiment=_free_name(_name(file.stem)),
        model=name,
        path=_scalar(model.path),
        options=options,
        sparse="" if model.has_own_attention else _SPARSE.format(model=name),
        lengths=", ".join(map(str, grid.lengths)),
        limit=limit,
        samples=grid.samples,
        device="" if known is None else f"device: {known} # for `needlework plan`\n",
    )


def _known_device(machine: Device) -> str | None:
    """The name of this machine's GPU in the device table; None: unknown, or no GPU."""
    if not machine.gpu:
        return None
    words = set(re.split(r"[ -]", torch.cuda.get_device_name().lower()))
    return next((name for name in devices() if words.issuperset(name.split("-"))), None)


def _name(text: str) -> str:
    """`text` as a name of the experiment file."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", text).lstrip("0123456789_.-")[:40]
    return name or "model"


def _free_name(name: str) -> str:
    """`name`, with a number behind it if its results folder exists."""
    names = (name, *(f"{name}-{i}" for i in range(2, 1000)))
    return next(free for free in names if not (Path("results") / free).exists())


def _scalar(text: str) -> str:
    """`text` as YAML, in quotes if needed."""
    return text if re.fullmatch(r"[A-Za-z./~][\w./~-]*", text) else json.dumps(text)
