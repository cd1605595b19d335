"""What no single key can tell: names that lead nowhere, combinations that cannot work."""

from collections.abc import Iterator
from pathlib import Path

from needlework.config.attention import InfiniAlignment
from needlework.config.devices import devices
from needlework.config.errors import Problem, one_of
from needlework.config.experiment import Experiment
from needlework.config.model_info import converted_by, is_behind_api, max_positions
from needlework.config.paths import source_problems
from needlework.config.tasks import BUILT_IN_HAYSTACKS, RowExamples, TaskExamples, TextExamples
from needlework.config.validation.gates import gates_problems, seer_problems
from needlework.config.validation.models import model_problems
from needlework.config.validation.opening import opening_problems
from needlework.config.validation.streams import stream_problems
from needlework.config.validation.training import validation_problems


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Everything that is wrong with a well-typed experiment, in the file's order."""
    models = list(model_problems(experiment))
    yield from models
    for name, data in experiment.finetune_data.items():
        where = ("finetune_data", name)
        if isinstance(data, TaskExamples) and data.task not in experiment.tasks:
            yield (*where, "task"), "names no task; " + one_of(experiment.tasks, data.task)
        if isinstance(data, RowExamples | TextExamples):
            yield from source_problems((*where, "path"), data.path)
    if not models:
        yield from opening_problems(experiment)
        yield from _own_attention(experiment)
    yield from gates_problems(experiment)
    yield from _systems(experiment)
    yield from _haystacks(experiment)
    yield from _tasks(experiment)
    yield from stream_problems(experiment)
    for name, system in experiment.systems.items():
        if system.early_stopping and experiment.early_stopping is None:
            yield (
                ("systems", name, "early_stopping"),
                "needs the experiment's; write early_stopping: true beside lengths",
            )
    if not models:
        yield from validation_problems(experiment)
        yield from _grid(experiment)


def _systems(experiment: Experiment) -> Iterator[Problem]:
    for name, system in experiment.systems.items():
        where = ("systems", name)
        if system.model not in experiment.models:
            yield (
                (*where, "model"),
                "names no model; " + one_of(experiment.models, system.model),
            )
        if system.attention is not None and system.attention.converts_model:
            yield (
                (*where, "attention", "type"),
                "is part of a model's weights; write it under models, with a `base`",
            )
        if system.attention is not None and is_behind_api(experiment, system.model):
            yield (*where, "attention"), "is for models whose weights are here; leave it out"
        elif system.attention is not None and system.attention.type == "seer":
            yield from seer_problems(experiment, where, system.model, system.attention)
    if experiment.baseline is not None and experiment.baseline not in experiment.systems:
        family = [n for n, s in experiment.systems.items() if s.family == experiment.baseline]
        named = "several systems" if family else "no system"
        yield (
            ("baseline",),
            f"names {named}; " + one_of(family or experiment.systems, experiment.baseline),
        )


def _own_attention(experiment: Experiment) -> Iterator[Problem]:
    """Whether a system or gates are for a model whose attention was converted already."""
    for name, gates in experiment.gates.items():
        if found := converted_by(experiment, gates.model):
            at, kind = found
            yield (
                ("gates", name, "model"),
                f"has {kind} as its own attention, by models.{at}; name a model that has none",
            )
    for name, system in experiment.systems.items():
        if system.attention is None or system.attention.converts_model:
            continue
        if isinstance(system.attention, InfiniAlignment):
            if (converted_by(experiment, system.model) or (None, None))[1] != "infini":
                yield (
                    ("systems", name, "attention", "type"),
                    f"is for Infini models and {system.model} is none; name another model",
                )
        elif found := converted_by(experiment, system.model):
            at, kind = found
            yield (
                ("systems", name, "model"),
                f"has {kind} as its own attention, by models.{at}; leave out the system's "
                "attention, or name another model",
            )


def _haystacks(experiment: Experiment) -> Iterator[Problem]:
    for name, haystack in experiment.haystacks.items():
        if name in BUILT_IN_HAYSTACKS and name != "essay":
            yield ("haystacks", name), "is built in; give yours another name"
        yield from source_problems(("haystacks", name, "path"), haystack.path)


def _tasks(experiment: Experiment) -> Iterator[Problem]:
    for name, task in experiment.tasks.items():
        depths = getattr(task, "depths", None) or []
        for i, depth in enumerate(depths if depths != "uniform" else []):
            if depth in depths[:i]:
                yield ("tasks", name, "depths", i), "stands twice; write it once"
        haystack = getattr(task, "haystack", None)
        known = dict.fromkeys([*BUILT_IN_HAYSTACKS, *experiment.haystacks])
        if haystack is not None and haystack not in known:
            yield ("tasks", name, "haystack"), "names no haystack; " + one_of(known, haystack)
        for file in task.files:
            for length in experiment.lengths if "{length}" in file else [""]:
                if not Path(found := file.replace("{length}", str(length))).is_file():
                    yield ("tasks", name, "path"), f"no file {found}; name one that is there"
                    break


def _grid(experiment: Experiment) -> Iterator[Problem]:
    if experiment.device not in devices():
        yield ("device",), "names no device; " + one_of(devices(), experiment.device)
    for key in ("lengths", "depths"):
        values = getattr(experiment, key)
        if values == "uniform":
            continue
        for i, value in enumerate(values):
            if value in values[:i]:
                yield (key, i), "stands twice; write it once"
    for i, length in enumerate(experiment.lengths):
        if length < 1:
            yield ("lengths", i), "is not a number of tokens; write a whole number above 0"
        if experiment.length_unit == "characters":
            continue
        # On an early_stopping a length that is too long is a rung that the system does not reach.
        free = [
            system for system in experiment.systems if experiment.early_stopping_of(system) is None
        ]
        for name in {experiment.systems[system].model: None for system in free}:
            if name not in experiment.models:
                continue
            limit = max_positions(experiment, name)
            if limit is not None and length > limit:
                yield (
                    ("lengths", i),
                    f"is beyond the {limit} positions of model `{name}`; write at most {limit}, "
                    f"or say `allow_extrapolation: true` in models.{name}",
                )
