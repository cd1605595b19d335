"""Folders with SeerAttention gates: saved by needlework, or a checkpoint of the released code.

The released code writes a config.json with keys that start with `seerattn_`, and the weights of the
gates alone (microsoft/SeerAttention).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from needlework.config.attention.base import Stage
from needlework.config.paths import json_object

WEIGHTS, DESCRIPTION = "gates.safetensors", "gates.json"
RELEASED_WEIGHTS = (
    "attn_gate_weights.safetensors",
    "model.safetensors",
    "attn_gate_weights.pth",
)
RELEASED_DESCRIPTION = "config.json"
POOLS = ("max", "min", "avg")
"""How keys of a block are pooled, in the order in which gates concatenate them."""
QUERY_POOLINGS = ("Qproj", "Qavgproj", "Qavg")
"""How decode gates combine the queries of a group: projected together; averaged, then projected;
averaged."""

_KEY_POOLING = re.compile("K(max)?(min)?(avg)?")
_DOWNLOAD = "; download the gates again"


class SavedGates(NamedTuple):
    """What a folder says of its gates, before any weight is read."""

    weights: str
    """File of weights; in safetensors, or a pickled state dict (`.pth`)."""
    description: str
    """File of the other fields."""
    block_size: int
    gate_dim: int
    stages: tuple[Stage, ...]
    key_pools: tuple[str, ...] = POOLS
    query_pooling: str = "Qproj"

    @property
    def is_pickle(self) -> bool:
        """Whether the weights are in a pickle file."""
        return self.weights.endswith(".pth")

    @property
    def is_released(self) -> bool:
        """Whether the released code wrote it."""
        return self.description == RELEASED_DESCRIPTION


def saved_gates(folder: str | Path) -> SavedGates:
    """What the gates in `folder` are.

    Raises:
        ValueError: the folder has no gates, or gates of an unsupported form; the message continues
            a sentence that starts with the folder.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        config = folder / RELEASED_DESCRIPTION
        released = (json_object(config) if config.is_file() else None) or {}
        if any(key.startswith("seerattn_") for key in released):
            return _released(folder, released)
    for file in (DESCRIPTION, WEIGHTS):
        if not (folder / file).is_file():
            raise ValueError(
                f"has no {file}; write the path of a folder of saved gates, or of released ones"
            )
    saved = json_object(folder / DESCRIPTION)
    if saved is None:
        raise ValueError(f"has a {DESCRIPTION} that is not a JSON object{_DOWNLOAD}")
    block_size, gate_dim, stages = (saved.get(key) for key in ("block_size", "gate_dim", "stages"))
    if not _is_count(block_size) or not _is_count(gate_dim) or not isinstance(stages, list):
        raise ValueError(
            f"has a {DESCRIPTION} without block_size, gate_dim or stages; distill or copy the "
            "gates again"
        )
    return SavedGates(WEIGHTS, DESCRIPTION, block_size, gate_dim, tuple(stages))


def _released(folder: Path, config: dict[str, Any]) -> SavedGates:
    weights = next((name for name in RELEASED_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ValueError(
            f"has a {RELEASED_DESCRIPTION} of gates, but none of {', '.join(RELEASED_WEIGHTS)}"
            f"{_DOWNLOAD}"
        )
    for key in ("seerattn_gate_block_size", "seerattn_gate_hidden_size"):
        if not _is_count(config.get(key)):
            raise _unsupported(config, key, "an integer above 0")
    sizes = config["seerattn_gate_block_size"], config["seerattn_gate_hidden_size"]
    if config.get("seerattn_use_rope", True) is not True:
        raise _unsupported(config, "seerattn_use_rope", "true")
    if config.get("seerattn_gate_force_double", False) is not False:
        raise _unsupported(config, "seerattn_gate_force_double", "false")
    key = "seerattn_gate_type"
    if key in config:
        query, _, keys = str(config[key]).partition("_")
        pools = _key_pools(keys)
        if query != "Qavg" or not pools:
            raise _unsupported(config, key, f"Qavg_ and {_KEY_POOLINGS}")
        return SavedGates(weights, RELEASED_DESCRIPTION, *sizes, ("prefill",), pools)
    pools = _key_pools(str(config.get("seerattn_k_seq_pooling_type")))
    if not pools:
        raise _unsupported(config, "seerattn_k_seq_pooling_type", _KEY_POOLINGS)
    pooling = config.get("seerattn_q_head_pooling_type")
    if pooling not in QUERY_POOLINGS:
        raise _unsupported(
            config, "seerattn_q_head_pooling_type", f"one of {', '.join(QUERY_POOLINGS)}"
        )
    return SavedGates(weights, RELEASED_DESCRIPTION, *sizes, ("decode",), pools, pooling)


_KEY_POOLINGS = "K followed by max, min and avg, or some of them in this order"


def _key_pools(name: str) -> tuple[str, ...]:
    """Pools that a name such as Kmaxminavg lists; none if it is no such name."""
    match = _KEY_POOLING.fullmatch(name)
    return tuple(pool for pool in match.groups() if pool) if match else ()


def _unsupported(config: dict[str, Any], key: str, supported: str) -> ValueError:
    value = repr(config[key]) if key in config else "missing"
    return ValueError(
        f"has a {RELEASED_DESCRIPTION} whose {key} is {value}; use gates where it is {supported}"
    )


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0
