"""Gates that cannot be distilled, or that do not fit what chooses blocks with them."""

from collections.abc import Iterator
from pathlib import Path

from needlework.config.attention import Attention
from needlework.config.errors import Problem, one_of
from needlework.config.experiment import Experiment
from needlework.config.model_info import BEHIND_API, is_behind_api
from needlework.config.paths import json_object
from needlework.config.validation.training import process_problems, row_problems


def gates_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong with the gates that the experiment distils, in the file's order."""
    for name, gates in experiment.gates.items():
        where = ("gates", name)
        if gates.model not in experiment.models:
            yield (*where, "model"), "names no model; " + one_of(experiment.models, gates.model)
        if is_behind_api(experiment, gates.model):
            yield (*where, "model"), BEHIND_API
        for i, stage in enumerate(gates.stages):
            if stage in gates.stages[:i]:
                yield (*where, "stages", i), "stands twice; write it once"
        yield from process_problems((*where, "distill"), gates.distill, [gates.distill])
        yield from row_problems(experiment, (*where, "distill"), gates.distill)


def seer_problems(
    experiment: Experiment, where: tuple[str, ...], model: str, attention: Attention
) -> Iterator[Problem]:
    """Whether the gates of `attention`, which stands below `where`, are there and fit `model`."""
    at = (*where, "attention", "gates")
    gates = experiment.gates.get(attention.gates)
    if gates is not None:
        size, stages = gates.block_size, gates.stages
        if gates.model != model:
            yield at, f"are gates of model `{gates.model}`; name gates of `{model}`, or that model"
    elif not (folder := Path(attention.gates)).is_dir():
        yield (
            at,
            f"names no gates; {one_of(experiment.gates, attention.gates)}, or a folder of them",
        )
        return
    elif missing := [f for f in ("gates.json", "gates.safetensors") if not (folder / f).is_file()]:
        yield at, f"has no {missing[0]}; name a folder that distilled gates were saved in"
        return
    elif (found := json_object(folder / "gates.json")) is None:
        yield at, "has a gates.json that is no JSON object; fetch it again"
        return
    else:
        size, stages = found.get("block_size"), found.get("stages")
        if type(size) is not int or size < 1 or not isinstance(stages, list):
            yield (
                at,
                "has a gates.json without block_size or stages; distil or copy the gates again",
            )
            return
    for stage, is_dense in (("prefill", attention.skip_prefill), ("decode", attention.skip_decode)):
        if not is_dense and stage not in stages:
            yield (
                at,
                f"has none for {stage}; write skip_{stage}: true, or name gates with that stage",
            )
    if size != attention.block_size:
        yield (
            (*where, "attention", "block_size"),
            f"is not the block size of the gates; write {size}, or name other gates",
        )
