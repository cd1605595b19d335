"""Checkpoints of gates as the released SeerAttention code writes them, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

POOLS = ("max", "min", "avg")
DECODE = {
    "seerattn_k_seq_pooling_type": "Kmaxminavg",
    "seerattn_q_head_pooling_type": "Qproj",
    "seerattn_use_qk_norm": True,
}
PREFILL = {"seerattn_gate_type": "Qavg_Kmaxminavg"}


def released_config(model: PreTrainedConfig, block_size: int, gate_dim: int, form: dict) -> dict:
    """The config.json of gates of `form` for a model."""
    keys = ("model_type", "hidden_size", "num_hidden_layers")
    keys += ("num_attention_heads", "num_key_value_heads")
    return {
        "base_model": "owner/base",
        **{key: getattr(model, key) for key in keys},
        "seerattn_gate_block_size": block_size,
        "seerattn_gate_hidden_size": gate_dim,
        **form,
    }


def released_weights(stated: dict[str, Any], d: int, norms: bool = True) -> dict[str, Tensor]:
    """Random weights of the released names and shapes, in half precision as published."""
    torch.manual_seed(0)
    heads, kv, g = (
        stated[key]
        for key in ("num_attention_heads", "num_key_value_heads", "seerattn_gate_hidden_size")
    )
    shapes: dict[str, tuple[int, ...]] = {}
    if "seerattn_gate_type" in stated:
        n = sum(pool in stated["seerattn_gate_type"][5:] for pool in POOLS)
        shapes["mask_linear_k"] = heads if g == d else kv, n * d, g
        if g != d:
            shapes["mask_linear_q"] = heads, d, g
    else:
        n = sum(pool in stated["seerattn_k_seq_pooling_type"] for pool in POOLS)
        shapes["attngate_linear_k"] = kv, n * d, g
        pooling = stated["seerattn_q_head_pooling_type"]
        if pooling != "Qavg":
            group = (heads // kv,) if pooling == "Qproj" else ()
            shapes["attngate_linear_q"] = kv, *group, d, g
        if norms:
            shapes |= {"attngate_qnorm": (g,), "attngate_knorm": (g,)}
    return {
        f"model.layers.{layer}.self_attn.attn_gate.{name}.weight": torch.randn(shape).bfloat16()
        for layer in range(stated["num_hidden_layers"])
        for name, shape in shapes.items()
    }


def write_released(
    folder: Path, stated: dict[str, Any], weights: dict[str, Tensor], file="attn_gate_weights.pth"
) -> str:
    """Write both files to `folder`, which is returned."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(stated))
    save = torch.save if file.endswith(".pth") else save_file
    save(weights, folder / file)
    return str(folder)
