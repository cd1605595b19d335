"""Ways to open a checkpoint that do not go together, or not with the checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from needlework.config.errors import Problem
from needlework.config.experiment import Experiment
from needlework.config.models import Checkpoint, Derived
from needlework.config.opening import SPREAD, Opening

DECIDES_ANSWERS_ONLY = ("dp", "cache", "prefill_chunk_tokens")
"""Keys that training a model, or gates of it, has no use for."""


def combined(opening: Opening) -> Iterator[tuple[str, str]]:
    """Keys that contradict another, each with the remedy."""
    if opening.device_map not in SPREAD:
        for key in ("max_memory", "cpu_offload", "offload_folder"):
            if getattr(opening, key) and (key != "max_memory" or opening.pp == 1):
                yield key, "needs layers shared out over devices; write device_map: auto beside it"
    if opening.pp > 1 and opening.device_map is not None:
        yield "pp", "shares the layers out itself; leave device_map out, or pp"
    if opening.processes > 1:
        key = "tp" if opening.tp > 1 else "ep"
        if opening.tp > 1 and opening.ep not in (1, opening.tp):
            yield "ep", f"is not {opening.tp}, the number of tp's processes; write that, or drop tp"
        for other in ("quantization", "device_map"):
            if getattr(opening, other) is not None:
                yield other, f"does not go with {key}: {opening.processes}; leave one of them out"
        if opening.pp > 1:
            yield "pp", f"does not go with {key}: {opening.processes}; leave one of them out"


def undivided(config: dict[str, Any], opening: Opening) -> tuple[str, str] | None:
    """The key that a model's config.json, as a mapping, does not allow, and why; None: all do."""
    text = config.get("text_config") or config
    stored = (config.get("quantization_config") or {}).get("quant_method")
    if stored is not None and opening.quantization is not None:
        return (
            "quantization",
            f"is for plain weights and these are stored in {stored}; leave it out",
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = text.get(name)
        if opening.tp > 1 and isinstance(heads, int) and heads % opening.tp:
            return "tp", f"does not divide the model's {heads} {name}; write a divisor of {heads}"
    if opening.ep > 1:
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        experts = next((text[name] for name in names if text.get(name)), 0)
        if not experts:
            return "ep", "is for models with experts and this one has none; write tp instead"
        if experts % opening.ep:
            return "ep", f"does not divide the model's {experts} experts; write a divisor"
    return None


def beside_attention(opening: Opening, attention: str) -> tuple[str, str] | None:
    """The key that an attention system, by its type, does not work with, and why."""
    if opening.tp > 1 and attention in ("seer", "infini"):
        return "tp", f"shares out heads, which {attention} must see together; write ep, pp or dp"
    if opening.cache == "offloaded" or (opening.cache != "dynamic" and attention == "infini"):
        return "cache", f"does not go with {attention}, whose state is in it; write dynamic"
    return None


def opening_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong with how the models of an experiment are opened, in the file's order."""
    for name, model in experiment.models.items():
        if not isinstance(model, Checkpoint):
            continue
        opening, config = model.opening, Path(model.path) / "config.json"
        found = list(combined(opening))
        if not found and config.is_file():
            known = json.loads(config.read_bytes())
            own = known.get("needlework_attention")
            wrong = undivided(known, opening) or (own and beside_attention(opening, own))
            found += [wrong] if wrong else []
        if opening.dp > experiment.samples:
            found.append(("dp", f"is above samples; write at most {experiment.samples}"))
        found += _uses(experiment, name, opening)
        yield from ((("models", name, key), what) for key, what in found)


def _uses(experiment: Experiment, name: str, opening: Opening) -> Iterator[tuple[str, str]]:
    """What does not go with what the experiment does with model `name`."""
    for system in experiment.systems.values():
        on_it = system.model == name and system.attention is not None
        if on_it and (wrong := beside_attention(opening, system.attention.type)):
            yield wrong
        size = 1 if system.attention is None else system.attention.chunk_multiple
        if system.model == name and (opening.prefill_chunk_tokens or 0) % size:
            yield "prefill_chunk_tokens", f"cuts blocks of {size}; write a multiple of {size}"
    trained = [m.base for m in experiment.models.values() if isinstance(m, Derived)]
    trained += [gates.model for gates in experiment.gates.values()]
    plain = Opening()
    if name in trained:
        for key in Opening.model_fields:
            if key not in DECIDES_ANSWERS_ONLY and getattr(opening, key) != getattr(plain, key):
                yield key, "is for evaluation; train from another entry of the same path without it"
    streamed = [
        stream.read_by(system).model or experiment.systems[system].model
        for stream in experiment.streams.values()
        for system in stream.systems or experiment.systems
        if stream.read_by(system).model or system in experiment.systems
    ]
    if name in streamed:
        for key in ("tp", "ep", "cache"):
            if getattr(opening, key) != getattr(plain, key):
                yield key, "is not for streams; stream another entry of the same path without it"
