"""Plan an experiment: the cost of every system at every length, without loading weights."""

import importlib
import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import polars as pl
from transformers import CONFIG_MAPPING
from transformers.utils.logging import set_verbosity_error

from needlework.attention.base import Computation, computation_of
from needlework.attention.infini.families import PREFIX
from needlework.config.attention.base import Attention
from needlework.config.attention.infini import Infini
from needlework.config.devices import Device
from needlework.config.experiment import Experiment, System
from needlework.config.model_info import max_positions
from needlework.config.models.api import Api
from needlework.config.opening import Opening
from needlework.planning.cost import Cost, Model
from needlework.planning.fit import devices_needed, fits, remedies
from needlework.planning.shape import Shape
from needlework.runtime.progress import track

# Warnings about a model's settings do not matter for planning.
set_verbosity_error()

BEHIND_AN_API = "behind an API"
CHARACTERS_PER_TOKEN = 4
"""Of English text; used if lengths are in characters."""
SCHEMA = {
    "system": pl.String,
    "model": pl.String,
    "length": pl.Int64,
    "tokens": pl.Int64,
    "parameters": pl.Int64,
    "active_parameters": pl.Int64,
    "weight_bytes": pl.Int64,
    "cache_bytes": pl.Int64,
    "activation_bytes": pl.Int64,
    "peak_bytes": pl.Int64,
    "attention_flops": pl.Float64,
    "flops": pl.Float64,
    "prefill_seconds": pl.Float64,
    "decode_seconds_per_token": pl.Float64,
    "prompts": pl.Int64,
    "prompt_tokens": pl.Int64,
    "completion_tokens": pl.Int64,
    "seconds": pl.Float64,
    "price_dollars": pl.Float64,
    "fits": pl.Boolean,
    "devices": pl.Int64,
    "note": pl.String,
}


def plan(experiment: Experiment, device: Device, advise: bool = True) -> pl.DataFrame:
    """Plan every system at every length, one row each, in the experiment's order.

    Args:
        experiment: to plan.
        device: that everything runs on, one prompt at a time.
        advise: look for changes that would make a prompt fit.

    Returns:
        Columns system, model, length (in the experiment's unit), tokens (of prompt and answer),
        parameters, active_parameters (used for a token), weight_bytes, cache_bytes,
        activation_bytes, peak_bytes (their sum, on a CPU plus the process), attention_flops and
        flops (of one prefill), prefill_seconds, decode_seconds_per_token; over the prompts of all
        tasks: prompts, prompt_tokens, completion_tokens (at most), seconds (at most),
        price_dollars (at most, of models behind an API; null: unknown price); fits (as the
        experiment opens the model, and within its positions), devices (fewest that it fits on,
        split by layers; null: more than 64) and note (what would make it fit, or why there is no
        estimate).
    """
    models = Models(experiment)
    cells = list(product(experiment.systems.items(), experiment.lengths))
    rows = [
        _row(models, name, system, length, device, advise)
        for (name, system), length in track(cells, description="plan", unit="length")
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


class Models:
    """The models of an experiment, each built once per dtype."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._shapes: dict[tuple[str, str], tuple[Shape, Attention | None] | ValueError] = {}
        self._models: dict[tuple[str, str, str], Model] = {}

    def opening(self, name: str) -> Opening:
        """How model `name` is held in memory."""
        return self.experiment.local(name).opening

    def open(self, name: str, dtype: str = "", **changed: Any) -> Model:
        """Model `name` of the experiment.

        Args:
            name: under `models:`.
            dtype: "": the model's own.
            changed: keys of its Opening to change.

        Raises:
            ValueError: the model cannot be opened.
        """
        opening = self.opening(name).model_copy(update=changed)
        key = name, dtype or self.experiment.local(name).dtype, repr(opening)
        if key not in self._models:
            shape, own = self._shape(name, key[1])
            self._models[key] = Model(shape, None if own is None else computation_of(own), opening)
        return self._models[key]

    def method(self, model: Model, system: Attention | None) -> Computation | None:
        """What computes attention when `system` is applied to `model`; None: its own attention."""
        if system is None or system.adjusts is not None:
            return None
        gate_dim = None
        # Gates that this experiment trains do not exist yet.
        if system.gates_name is not None and system.gates_name in self.experiment.gates:
            gates = self.experiment.gates[system.gates_name]
            gate_dim = gates.gate_dim or model.shape.layers[0].key_dim
        return computation_of(system, gate_dim)

    def _shape(self, name: str, dtype: str) -> tuple[Shape, Attention | None]:
        own = None
        for ancestor, model in self.experiment.ancestors(name):
            own, root = own or (model.local and model.local.conversion), ancestor
        if (root, dtype) not in self._shapes:
            try:
                self._shapes[root, dtype] = self._open_root(root, dtype)
            except ValueError as error:  # kept, to query the hub once and not per length
                self._shapes[root, dtype] = error
        opened = self._shapes[root, dtype]
        if isinstance(opened, ValueError):
            raise opened
        shape, of_checkpoint = opened
        return shape, own or of_checkpoint

    def _open_root(self, root: str, dtype: str) -> tuple[Shape, Attention | None]:
        model = self.experiment.local(root)
        module = model.config_module
        if module is None:
            raise ValueError(f"models.{root}: has no config before a run")
        try:
            config = importlib.import_module(module).config_of(model)
        except ValueError as error:
            raise ValueError(f"models.{root}.{model.source} = {error}") from None
        infini = getattr(config, "infini", None)
        if infini is None:
            return Shape(config, dtype), None
        # The converted classes add only one gate per head to those of the family.
        family = CONFIG_MAPPING[config.model_type.removeprefix(PREFIX)]
        return Shape(family.from_dict(config.to_dict()), dtype), Infini.model_validate(infini)


def tokens_of(experiment: Experiment, length: int) -> int:
    """Tokens of prompt and answer at a length of the experiment."""
    if experiment.length_unit == "tokens":
        return length
    return math.ceil(length / CHARACTERS_PER_TOKEN)


def _row(
    models: Models, name: str, system: System, length: int, device: Device, advise: bool
) -> dict[str, Any]:
    experiment = models.experiment
    tokens = tokens_of(experiment, length)
    answers = [task.max_new_tokens for task in experiment.tasks.values()]
    prompts = len(answers) * experiment.samples
    row = {
        "system": name,
        "model": system.model,
        "length": length,
        "tokens": tokens,
        "prompts": prompts,
        "prompt_tokens": experiment.samples * sum(max(0, tokens - new) for new in answers),
        "completion_tokens": experiment.samples * sum(answers),
    }
    api = experiment.models[system.model].remote
    if api is not None:
        return _api_row(api, row)
    try:
        model = models.open(system.model)
        method = models.method(model, system.attention)
        cost = model.cost(method, tokens, device)
        notes: Iterator[str] = iter(())
        row["fits"] = fits(model, cost, device)
        limit = max_positions(experiment, system.model)
        if limit is not None and tokens > limit:
            row["fits"], notes = False, iter([f"allow_extrapolation: true (it has {limit:,})"])
        elif advise and not row["fits"]:
            opened = partial(models.open, system.model)
            notes = remedies(opened, method, tokens, device)
        return row | _cost_columns(model, cost, row, device) | {"note": "; ".join(notes) or None}
    except ValueError as error:
        return row | {"note": str(error)}


def _api_row(entry: Api, row: dict[str, Any]) -> dict[str, Any]:
    """Row of a model behind an API: tokens and their price."""
    new = row["completion_tokens"] + row["prompts"] * entry.thinking_tokens
    price = entry.price and entry.price.dollars(row["prompt_tokens"], new)
    return row | {"completion_tokens": new, "price_dollars": price, "note": BEHIND_AN_API}


def _cost_columns(model: Model, cost: Cost, row: dict[str, Any], device: Device) -> dict[str, Any]:
    seconds = row["prompts"] * cost.prefill_seconds
    return {
        "parameters": model.shape.parameters,
        "active_parameters": model.shape.active_parameters,
        "weight_bytes": cost.weight_bytes,
        "cache_bytes": cost.cache_bytes,
        "activation_bytes": cost.activation_bytes,
        "peak_bytes": cost.peak_bytes,
        "attention_flops": float(cost.attention_flops),
        "flops": float(cost.flops),
        "prefill_seconds": cost.prefill_seconds,
        "decode_seconds_per_token": cost.decode_seconds_per_token,
        "seconds": seconds + row["completion_tokens"] * cost.decode_seconds_per_token,
        "devices": devices_needed(cost, device),
    }
