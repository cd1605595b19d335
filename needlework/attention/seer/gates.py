"""SeerAttention's gates (Gao et al., 2024; SeerAttention-R, 2025): small layers that score blocks.

A gate reads queries and keys from before RoPE, pooled by block, projects them, rotates them to the
first token of their block and multiplies. The base model stays as it is; only gates learn.
"""

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from needlework.attention.rope import Rotation, rotate
from needlework.config.base import Strict

WEIGHTS, DESCRIPTION = "gates.safetensors", "gates.json"
STAGES = ("prefill", "decode")
_SUMS = 16

Angles = tuple[Tensor, Tensor]
"""Cosines and sines [batch or 1, n, gate_dim], as `Rotation.at` gives them."""


class PrefillGate(nn.Module):
    """Scores of blocks for blocks of queries, each query head for itself.

    `key` [kv heads, 3 d, g] and `query` [heads, d, g]. Where g is d queries are not projected, and
    `key` has a matrix for each query head [heads, 3 d, g], as in the released weights.
    """

    def __init__(self, heads: int, kv_heads: int, d: int, gate_dim: int):
        super().__init__()
        self.kv_heads = kv_heads
        projects_query = gate_dim != d
        self.key = _projection(kv_heads if projects_query else heads, 3 * d, gate_dim)
        self.query = _projection(heads, d, gate_dim) if projects_query else None

    def queries(self, query: Tensor, angles: Angles) -> Tensor:
        """Means of blocks [batch, heads, rows, d] -> [batch, heads, rows, g], float32."""
        query = query.float()
        return rotate(query if self.query is None else query @ self.query, angles)

    def keys(self, pools: Tensor, angles: Angles) -> Tensor:
        """Pools [batch, kv heads, blocks, 3 d] -> [batch, heads of `key`, blocks, g], float32."""
        weight = self.key.unflatten(0, (self.kv_heads, -1))
        return rotate((pools.float()[:, :, None] @ weight).flatten(1, 2), angles)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Of what `queries` and `keys` gave [batch, heads, rows, blocks], unmasked."""
        keys = keys.unflatten(1, (self.kv_heads, -1))
        queries = queries.unflatten(1, (self.kv_heads, -1)) * queries.shape[-1] ** -0.5
        return (queries @ keys.transpose(-1, -2)).flatten(1, 2)

    def forward(
        self, query: Tensor, pools: Tensor, query_angles: Angles, key_angles: Angles
    ) -> Tensor:
        """Logits [batch, heads, rows, blocks], float32, before mask and softmax.

        query [batch, heads, rows, d], means of blocks, and pools [batch, kv heads, blocks, 3 d] of
        `pool_keys`, both before RoPE; angles those of the blocks' first tokens.
        """
        return self.logits(self.queries(query, query_angles), self.keys(pools, key_angles))


class DecodeGate(nn.Module):
    """Scores of blocks for single queries, one for all query heads of a key head.

    `query` [kv heads, group, d, g] projects the group's queries, concatenated; `key` [kv heads,
    3 d, g].
    """

    def __init__(self, heads: int, kv_heads: int, d: int, gate_dim: int):
        super().__init__()
        self.kv_heads = kv_heads
        group = heads // kv_heads
        self.query = _projection(kv_heads, group * d, gate_dim)
        self.query = nn.Parameter(self.query.detach().unflatten(1, (group, d)))
        self.key = _projection(kv_heads, 3 * d, gate_dim)

    def queries(self, query: Tensor, angles: Angles) -> Tensor:
        """Queries [batch, heads, n, d] -> [batch, kv heads, n, g], float32."""
        query = query.float().unflatten(1, (self.kv_heads, -1)).transpose(2, 3).flatten(3)
        return rotate(query @ self.query.flatten(1, 2), angles)

    def keys(self, pools: Tensor, angles: Angles) -> Tensor:
        """Pools [batch, kv heads, blocks, 3 d] -> [batch, kv heads, blocks, g], float32."""
        return rotate(pools.float() @ self.key, angles)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Of what `queries` and `keys` gave [batch, kv heads, n, blocks], unmasked."""
        return queries * queries.shape[-1] ** -0.5 @ keys.transpose(-1, -2)

    def forward(
        self, query: Tensor, pools: Tensor, query_angles: Angles, key_angles: Angles
    ) -> Tensor:
        """Logits [batch, kv heads, n, blocks], float32, before mask and softmax.

        query [batch, heads, n, d] and pools [batch, kv heads, blocks, 3 d] of `pool_keys`, both
        before RoPE; angles those of the queries themselves, and of the blocks' first tokens.
        """
        return self.logits(self.queries(query, query_angles), self.keys(pools, key_angles))


def _projection(heads: int, inputs: int, outputs: int) -> nn.Parameter:
    """A matrix for each head [heads, inputs, outputs], float32; Glorot & Bengio (2010)."""
    bound = (6 / (inputs + outputs)) ** 0.5
    return nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-bound, bound))


def pool_keys(key: Tensor, is_real: Tensor) -> Tensor:
    """Maximum, minimum and mean of each block's keys, side by side [batch, kv heads, blocks, 3 d].

    key [batch, kv heads, blocks, block_size, d] before RoPE; is_real [batch, 1, blocks, block_size,
    1], bool: only real tokens count. 0 for a block that has none. float32.
    """
    key = key.float()
    highest = key.masked_fill(~is_real, -torch.inf).amax(3)
    lowest = key.masked_fill(~is_real, torch.inf).amin(3)
    mean = key.masked_fill(~is_real, 0).sum(3) / is_real.sum(3).clamp_min(1)
    return torch.cat([highest, lowest, mean], -1).masked_fill(~is_real.any(3), 0)


class Description(Strict):
    """What gates were made for (gates.json)."""

    base: str
    """Name or folder of the model, for people."""
    model_type: str
    block_size: int = Field(ge=1)
    """Tokens a block."""
    gate_dim: int = Field(ge=2, multiple_of=2)
    stages: tuple[Literal["prefill", "decode"], ...]
    layers: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    dtype: str
    signature: tuple[tuple[float, ...], ...]
    """For each layer, sums over parts of the query and key of one token, computed in dtype.

    They tell weights: those of the layer's own query and key, and of the MLPs before it."""

    @field_validator("dtype")
    @classmethod
    def _is_known(cls, name: str) -> str:
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"{name} is no floating-point dtype of torch")
        return name


class Gates(nn.Module):
    """The gates of all full-attention layers of one model.

    `prefill` and `decode` hold them by layer number, as text; the one not in description.stages is
    empty.
    """

    def __init__(self, description: Description):
        super().__init__()
        self.description = d = description
        shape = d.heads, d.kv_heads, d.head_dim, d.gate_dim
        kinds = {"prefill": PrefillGate, "decode": DecodeGate}
        for stage, kind in kinds.items():
            layers = d.layers if stage in d.stages else ()
            setattr(self, stage, nn.ModuleDict({str(layer): kind(*shape) for layer in layers}))

    @classmethod
    def new(
        cls,
        model: PreTrainedModel,
        *,
        block_size: int,
        gate_dim: int | None = None,
        stages: Iterable[str] = STAGES,
    ) -> "Gates":
        """Untrained gates for `model`, in float32 on its device. gate_dim None: its head dimension.

        Raises:
            ValueError: gate_dim is odd or block_size below 1, the model's layers differ in shape,
                its rotation cannot be undone, or `apply` would refuse it.
        """
        made_for = _describe(model, block_size, gate_dim, tuple(stages))
        return cls(made_for).to(model.device)

    def save(self, folder: str | Path) -> None:
        """Write gates.safetensors and gates.json; the latter last, so that it stands for both."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}
        with tempfile.TemporaryDirectory(dir=folder) as half:
            save_file(weights, Path(half) / WEIGHTS)
            text = self.description.model_dump_json(indent=2) + "\n"
            (Path(half) / DESCRIPTION).write_text(text)
            (folder / DESCRIPTION).unlink(missing_ok=True)
            for name in (WEIGHTS, DESCRIPTION):
                (Path(half) / name).replace(folder / name)

    @classmethod
    def open(cls, folder: str | Path, model: PreTrainedModel) -> "Gates":
        """Gates saved in `folder`, for `model`, on its device.

        Another model is one of other shape, or whose queries and keys differ in any layer: by 1e-4
        where both are in float32. In half precision only by more than its roundings, which grow
        with depth, so a model that was fine-tuned a little passes; other values and outputs of
        attention always do.

        Raises:
            ValueError: no gates there, one is missing or of another shape, or they are those of
                another model.
        """
        folder = Path(folder)
        for name in (DESCRIPTION, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(f"gates: {folder} has no {name}; name a folder of saved gates")
        try:
            description = Description.model_validate_json((folder / DESCRIPTION).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = first["msg"].removeprefix("Value error, ")
            raise _broken(folder / DESCRIPTION, f"{where}: {what}" if where else what) from None
        d = description
        model_description = _describe(model, d.block_size, d.gate_dim, d.stages)
        _check_same_model(folder, description, model_description)
        with torch.device("meta"):
            made = cls(description)
        try:
            wanted, found = made.state_dict(), load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise _broken(folder / WEIGHTS, str(error)) from None
        for name in sorted(wanted.keys() | found.keys()):
            if name not in found or name not in wanted:
                state = "missing" if name not in found else "not one of these gates"
                raise _broken(folder / WEIGHTS, f"{name} is {state}")
            if found[name].shape != wanted[name].shape:
                shapes = f"{list(found[name].shape)}, not {list(wanted[name].shape)}"
                raise _broken(folder / WEIGHTS, f"{name} is {shapes}")
        made.load_state_dict(found, assign=True)
        return made.to(model.device, torch.float32).eval().requires_grad_(False)


def _describe(
    model: PreTrainedModel, block_size: int, gate_dim: int | None, stages: tuple[str, ...]
) -> Description:
    rotation = Rotation(model)
    rotation.remove()
    shapes = set(rotation.shapes.values())
    if len(shapes) > 1:
        raise ValueError(f"model: layers of unlike heads {sorted(shapes)} have no common gate")
    heads, kv_heads, d = shapes.pop()
    gate_dim = d if gate_dim is None else gate_dim
    if gate_dim < 2 or gate_dim % 2:
        raise ValueError(
            f"gate_dim: {gate_dim} is odd or below 2, and RoPE turns pairs; give an even one"
        )
    if block_size < 1:
        raise ValueError(f"block_size: {block_size} is below a token; give 1 or more")
    return Description(
        base=model.config.name_or_path or "unnamed",
        model_type=model.config.get_text_config(decoder=True).model_type,
        block_size=block_size,
        gate_dim=gate_dim,
        stages=stages,
        layers=tuple(sorted(rotation.shapes)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=d,
        rope_theta=rotation.theta,
        dtype=str(model.dtype).removeprefix("torch."),
        signature=tuple(_sums(x) for _, x in sorted(rotation.signatures.items())),
    )


def _sums(signature: Tensor) -> tuple[float, ...]:
    return tuple(part.sum().item() for part in signature.double().tensor_split(_SUMS))


def _broken(file: Path, what: str) -> ValueError:
    return ValueError(f"gates: {file}: {what}; distil or copy them again")


def _check_same_model(folder: Path, gates: Description, model: Description) -> None:
    for name in ("model_type", "layers", "heads", "kv_heads", "head_dim", "rope_theta"):
        theirs, its = getattr(gates, name), getattr(model, name)
        if theirs != its:
            raise ValueError(
                f"gates: {folder} was made for a model of {name} {theirs} ({gates.base}), "
                f"this one's is {its}"
            )
    # A query in half precision is off by some roundings; a model fine-tuned in float32 by more.
    coarser = max(torch.finfo(getattr(torch, d.dtype)).eps for d in (gates, model))
    limits = [max(1e-4, 4 * coarser * (layer + 1)) for layer in model.layers]
    sums = gates.signature, model.signature
    if [*map(len, sums[0])] != [*map(len, sums[1])] or any(
        math.dist(theirs, its) > limit * math.hypot(*its)
        for theirs, its, limit in zip(*sums, limits, strict=True)
    ):
        raise ValueError(
            f"gates: {folder} was made for a model of the same shape with other weights "
            f"({gates.base}); distil gates on this one"
        )
