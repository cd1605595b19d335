"""Gates of the released SeerAttention code (Gao et al., 2024; -R, 2025), as ours.

Each pooling of the released code is a case of ours, with other weights: a pool of keys that a gate
leaves out has weights of 0, and a projection of the mean query of a group is the same projection of
each query, divided by the size of the group.
"""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from needlework.attention.seer.gates import Description, Gates, describe
from needlework.config.paths import json_object
from needlework.config.saved_gates import POOLS, SavedGates, saved_gates

_NAME = re.compile(r"(?:.*\.)?layers\.(\d+)\.self_attn\.attn_gate\.(\w+)\.weight")
_MODEL_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def open_gates(folder: str | Path, model: PreTrainedModel) -> Gates:
    """Load the gates in `folder`, saved or released, for `model` on its device.

    Released gates name the shape of their model only, so that weights are not compared.

    Raises:
        ValueError: as `Gates.open`; or the released gates are of an unsupported form, or belong to
            a model of another shape.
    """
    try:
        saved = saved_gates(folder)
    except ValueError as error:
        raise ValueError(f"gates: {folder} {error}") from None
    if not saved.is_released:
        return Gates.open(folder, model)
    _check_model(Path(folder) / saved.description, model)
    file = Path(folder) / saved.weights
    released = _read(file)
    description = describe(model, saved.block_size, saved.gate_dim, saved.stages)
    has_norms = any(name == "attngate_qnorm" for _, name in released)
    description = description.model_copy(update={"norms": has_norms})
    if saved.gate_dim != description.head_dim:
        _check_width(file, saved, model)
    return Gates.of(description, _translated(released, description, saved, file), file, model)


def _translated(
    released: dict[tuple[int, str], Tensor],
    description: Description,
    saved: SavedGates,
    file: Path,
) -> dict[str, Tensor]:
    """The released weights, by the names of `Gates`."""
    (stage,) = saved.stages
    heads, kv, d, g = (
        getattr(description, x) for x in ("heads", "kv_heads", "head_dim", "gate_dim")
    )
    group, is_square = heads // kv, g == d
    key_inputs = len(saved.key_pools) * d
    shapes: dict[str, tuple[int, ...]] = {}
    if stage == "prefill":
        shapes["mask_linear_k"] = (heads if is_square else kv, key_inputs, g)
        if not is_square:
            shapes["mask_linear_q"] = heads, d, g
    else:
        shapes["attngate_linear_k"] = kv, key_inputs, g
        if saved.query_pooling != "Qavg":
            of_group = (group,) if saved.query_pooling == "Qproj" else ()
            shapes["attngate_linear_q"] = kv, *of_group, d, g
        if description.norms:
            shapes["attngate_qnorm"] = shapes["attngate_knorm"] = (g,)
    ours = {
        "mask_linear_k": "key",
        "mask_linear_q": "query",
        "attngate_linear_k": "key",
        "attngate_linear_q": "query",
        "attngate_qnorm": "query_norm",
        "attngate_knorm": "key_norm",
    }
    translated = {}
    for layer in description.layers:
        for name, shape in shapes.items():
            weight = released.get((layer, name))
            if weight is None:
                raise ValueError(
                    f"gates: {file}: layer {layer} has no {name}; download the gates again"
                )
            if weight.shape != shape:
                raise ValueError(
                    f"gates: {file}: {name} of layer {layer} has shape {list(weight.shape)}, not "
                    f"{list(shape)}; use the gates of this model"
                )
            weight = weight.float()
            if ours[name] == "key":
                weight = _widened(weight, saved.key_pools)
            elif name == "attngate_linear_q" and saved.query_pooling == "Qavgproj":
                weight = (weight / group)[:, None].repeat(1, group, 1, 1)
            translated[f"{stage}.{layer}.{ours[name]}"] = weight
        if stage == "decode" and saved.query_pooling == "Qavg":
            weight = (torch.eye(d) / group).repeat(kv, group, 1, 1)
            translated[f"{stage}.{layer}.query"] = weight
    return translated


def _widened(weight: Tensor, pools: tuple[str, ...]) -> Tensor:
    """Weights for all POOLS [heads, 3 d, g] of those for `pools`."""
    parts = dict(zip(pools, weight.chunk(len(pools), 1), strict=True))
    absent = torch.zeros_like(parts[pools[0]])
    return torch.cat([parts.get(pool, absent) for pool in POOLS], 1)


def _read(file: Path) -> dict[tuple[int, str], Tensor]:
    """Weights of gates by layer and name; others in the file are left out."""
    try:
        if file.suffix == ".pth":
            weights = torch.load(file, map_location="cpu", weights_only=True)
        else:
            weights = load_file(file)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"gates: {file}: {reason}; download the gates again") from None
    matches = ((_NAME.fullmatch(name), x) for name, x in weights.items())
    return {(int(match[1]), match[2]): x for match, x in matches if match}


def _check_model(file: Path, model: PreTrainedModel) -> None:
    """Raise if the config next to the gates is that of a model of another shape."""
    stated, config = json_object(file) or {}, model.config.get_text_config(decoder=True)
    for key in _MODEL_KEYS:
        actual = getattr(config, key, None)
        if key in stated and stated[key] != actual:
            raise ValueError(
                f"gates: {file}: {key} is {stated[key]!r}, but this model has {actual!r}; use the "
                "gates of this model"
            )


def _check_width(file: Path, saved: SavedGates, model: PreTrainedModel) -> None:
    config = model.config.get_text_config(decoder=True)
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if saved.query_pooling == "Qavg" and saved.stages == ("decode",):
        raise ValueError(
            f"gates: {file}: seerattn_q_head_pooling_type Qavg needs gates as wide as a head, not "
            f"{saved.gate_dim}"
        )
    if rope_type != "default":
        raise ValueError(
            f"gates: {file}: the width of the gates is not the model's head dimension, and its "
            f"rope_type {rope_type} scales frequencies; use gates as wide as a head"
        )
