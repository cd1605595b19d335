"""Validation across sections of the experiment file: references and combinations."""

from collections.abc import Iterator
from pathlib import Path

from needlework.config.attention.seer import Seer
from needlework.config.devices import devices
from needlework.config.errors import Problem, suggest
from needlework.config.experiment import Experiment
from needlework.config.finetune_data import RowExamples, TaskExamples, TextExamples
from needlework.config.model_info import is_behind_api, max_positions, own_attention
from needlework.config.paths import source_problems
from needlework.config.tasks.haystack import BUILT_IN_HAYSTACKS
from needlework.config.validation.gates import gates_problems, seer_problems
from needlework.config.validation.models import model_problems
from needlework.config.validation.opening import opening_problems
from needlework.config.validation.streams import stream_problems
from needlework.config.validation.training import validation_problems

_DUPLICATE = "is a duplicate; remove it"


def experiment_problems(experiment: Experiment) -> Iterator[Problem]:
    """All problems of an experiment whose types are correct, in file order."""
    models = list(model_problems(experiment))
    yield from models
    for name, data in experiment.finetune_data.items():
        where = ("finetune_data", name)
        if isinstance(data, TaskExamples) and data.task not in experiment.tasks:
            yield (*where, "task"), "unknown task; " + suggest(experiment.tasks, data.task)
        if isinstance(data, RowExamples | TextExamples):
            yield from source_problems((*where, "path"), data.path)
    if not models:
        yield from opening_problems(experiment)
        yield from _conversion_problems(experiment)
    yield from gates_problems(experiment)
    yield from _system_problems(experiment)
    yield from _haystack_problems(experiment)
    yield from _task_problems(experiment)
    yield from stream_problems(experiment)
    for name, system in experiment.systems.items():
        if system.early_stopping and experiment.early_stopping is None:
            yield (
                ("systems", name, "early_stopping"),
                "has no effect unless the experiment sets it; write `early_stopping: true` next to "
                "lengths",
            )
    if not models:
        yield from validation_problems(experiment)
        yield from _grid_problems(experiment)


def _system_problems(experiment: Experiment) -> Iterator[Problem]:
    for name, system in experiment.systems.items():
        where = ("systems", name)
        if system.model not in experiment.models:
            yield (
                (*where, "model"),
                "unknown model; " + suggest(experiment.models, system.model),
            )
        if system.attention is not None and system.attention.converts_model:
            yield (
                (*where, "attention", "type"),
                "is part of a model's weights; write it under models, with a `base`",
            )
        if system.attention is not None and is_behind_api(experiment, system.model):
            yield (
                (*where, "attention"),
                "cannot apply to a model behind an API; remove it",
            )
        elif isinstance(system.attention, Seer):
            yield from seer_problems(experiment, where, system.model, system.attention)
    baseline = experiment.baseline
    if baseline is not None and baseline not in experiment.systems:
        family = [name for name, s in experiment.systems.items() if s.family == baseline]
        what = "is a family of systems; " if family else "unknown system; "
        yield ("baseline",), what + suggest(family or experiment.systems, baseline)


def _conversion_problems(experiment: Experiment) -> Iterator[Problem]:
    """Systems and gates that do not fit the attention that their model was converted to."""
    for name, gates in experiment.gates.items():
        if conversion := own_attention(experiment, gates.model):
            converted, attention = conversion
            yield (
                ("gates", name, "model"),
                f"uses {attention} attention (see models.{converted}); write a model that keeps "
                "its original attention",
            )
    for name, system in experiment.systems.items():
        if system.attention is None or system.attention.converts_model:
            continue
        conversion = own_attention(experiment, system.model)
        if (adjusts := system.attention.adjusts) is not None:
            if conversion is None or conversion[1] != adjusts:
                yield (
                    ("systems", name, "attention", "type"),
                    f"needs an Infini model, and {system.model} is not one; write another model",
                )
        elif conversion is not None:
            converted, attention = conversion
            yield (
                ("systems", name, "model"),
                f"uses {attention} attention (see models.{converted}); remove the system's "
                "attention, or write another model",
            )


def _haystack_problems(experiment: Experiment) -> Iterator[Problem]:
    for name, haystack in experiment.haystacks.items():
        if name in BUILT_IN_HAYSTACKS and name != "essay":
            yield ("haystacks", name), "is the name of a built-in haystack; rename yours"
        yield from source_problems(("haystacks", name, "path"), haystack.path)


def _task_problems(experiment: Experiment) -> Iterator[Problem]:
    for name, task in experiment.tasks.items():
        depths = getattr(task, "depths", None) or []
        for i, depth in enumerate(depths if depths != "uniform" else []):
            if depth in depths[:i]:
                yield ("tasks", name, "depths", i), _DUPLICATE
        haystack = task.haystack_name
        known = dict.fromkeys([*BUILT_IN_HAYSTACKS, *experiment.haystacks])
        if haystack is not None and haystack not in known:
            yield ("tasks", name, "haystack"), "unknown haystack; " + suggest(known, haystack)
        for pattern in task.files:
            for length in experiment.lengths if "{length}" in pattern else [0]:
                file = pattern.replace("{length}", str(length))
                if not Path(file).is_file():
                    yield ("tasks", name, "path"), f"no file {file}; write the path of a file"
                    break


def _grid_problems(experiment: Experiment) -> Iterator[Problem]:
    if experiment.device not in devices():
        yield ("device",), "unknown device; " + suggest(devices(), experiment.device)
    for key in ("lengths", "depths"):
        values = getattr(experiment, key)
        if values == "uniform":
            continue
        for i, value in enumerate(values):
            if value in values[:i]:
                yield (key, i), _DUPLICATE
    # Early stopping skips lengths that are too long for a model, so they are not errors.
    systems = [name for name in experiment.systems if experiment.early_stopping_of(name) is None]
    models = dict.fromkeys(experiment.systems[name].model for name in systems)
    for i, length in enumerate(experiment.lengths):
        if length < 1:
            yield ("lengths", i), "is not a length; write an integer above 0"
        if experiment.length_unit == "characters":
            continue
        for name in models:
            if name not in experiment.models:
                continue
            limit = max_positions(experiment, name)
            if limit is not None and length > limit:
                yield (
                    ("lengths", i),
                    f"exceeds the {limit} positions of model `{name}`; write at most {limit}, "
                    f"or set `allow_extrapolation: true` in models.{name}",
                )
