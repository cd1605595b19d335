"""Validation of SeerAttention gates and of the systems that use them."""

from collections.abc import Iterator
from pathlib import Path

from needlework.config.attention.base import Stage
from needlework.config.attention.seer import Seer
from needlework.config.errors import Location, Problem, suggest
from needlework.config.experiment import Experiment
from needlework.config.model_info import BEHIND_API, is_behind_api
from needlework.config.saved_gates import saved_gates
from needlework.config.validation.training import process_problems, row_problems


def gates_problems(experiment: Experiment) -> Iterator[Problem]:
    """Problems with the gates that the experiment distills, in file order."""
    for name, gates in experiment.gates.items():
        where = ("gates", name)
        if gates.model not in experiment.models:
            yield (*where, "model"), "unknown model; " + suggest(experiment.models, gates.model)
        if is_behind_api(experiment, gates.model):
            yield (*where, "model"), BEHIND_API
        for i, stage in enumerate(gates.stages):
            if stage in gates.stages[:i]:
                yield (*where, "stages", i), "is a duplicate; remove it"
        yield from process_problems((*where, "distill"), gates.distill, [gates.distill])
        yield from row_problems(experiment, (*where, "distill"), gates.distill)


def seer_problems(
    experiment: Experiment, where: Location, model: str, attention: Seer
) -> Iterator[Problem]:
    """Problems with the gates of the system at `where`: missing, or unfit for `model`."""
    at = (*where, "attention", "gates")
    gates = experiment.gates.get(attention.gates)
    if gates is None:
        if not Path(attention.gates).is_dir():
            known = suggest(experiment.gates, attention.gates)
            yield at, f"unknown gates; {known}, or a folder of saved gates"
            return
        try:
            saved = saved_gates(attention.gates)
        except ValueError as error:
            yield at, str(error)
            return
        if saved.is_pickle and not _allows_pickle(experiment, model):
            yield (
                at,
                f"has its weights in a pickle, {saved.weights}; write allow_pickle: true in the "
                "model's entry if you trust it, or save them as attn_gate_weights.safetensors",
            )
        block_size, stages = saved.block_size, list[str](saved.stages)
    else:
        block_size, stages = gates.block_size, list[str](gates.stages)
        if gates.model != model:
            yield (
                at,
                f"are gates of model `{gates.model}`; use gates of `{model}`, or change the model",
            )
    sparse: dict[Stage, Stage] = {"prefill": "decode", "decode": "prefill"}
    for stage, other in sparse.items():
        if not attention.is_dense(stage) and stage not in stages:
            yield (
                at,
                f"has no gates for {stage}; set stages: {other}, or use gates with that stage",
            )
    if block_size != attention.block_size:
        yield (
            (*where, "attention", "block_size"),
            f"differs from the gates' block size; write {block_size}, or use other gates",
        )


def _allows_pickle(experiment: Experiment, model: str) -> bool:
    """Whether the entry of `model`, or of a model it starts from, allows pickle files."""
    entries = (entry.local for _, entry in experiment.ancestors(model))
    return any(entry is not None and entry.spec().allow_pickle for entry in entries)
