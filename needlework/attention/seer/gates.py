"""Gates of SeerAttention (Gao et al., 2024; SeerAttention-R, 2025): small layers that score blocks.

A gate takes queries and keys before RoPE, pools them by block, projects them, applies RoPE at the
first token of each block, and multiplies them. Only gates are trained; the base model is frozen.
"""

import math
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel

from needlework.attention.rope import Angles, Rotation, rotate
from needlework.config.base import Strict
from needlework.config.saved_gates import DESCRIPTION, WEIGHTS

Stage = Literal["prefill", "decode"]
STAGES: tuple[Stage, ...] = ("prefill", "decode")
NORM_EPS = 1e-6
SIGNATURE_PARTS = 16


class PrefillGate(nn.Module):
    """Scores blocks of keys for blocks of queries, separately for each query head.

    Weights are `key` [kv heads, 3 d, g] and `query` [heads, d, g]. If g equals d, queries are not
    projected and `key` has one matrix per query head [heads, 3 d, g], as in the released weights.
    Angles are cosines and sines [batch or 1, n, g], as `Rotation.at` returns them.
    """

    def __init__(self, heads: int, kv_heads: int, d: int, gate_dim: int):
        super().__init__()
        self.kv_heads = kv_heads
        projects_query = gate_dim != d
        self.key = _projection(kv_heads if projects_query else heads, 3 * d, gate_dim)
        self.query = _projection(heads, d, gate_dim) if projects_query else None

    def queries(self, query: Tensor, angles: Angles) -> Tensor:
        """Project block means [batch, heads, rows, d] to [batch, heads, rows, g], float32."""
        query = query.float()
        return rotate(query if self.query is None else query @ self.query, angles)

    def keys(self, pools: Tensor, angles: Angles) -> Tensor:
        """Project pools [batch, kv heads, blocks, 3 d] to [batch, heads of `key`, blocks, g],
        float32."""
        weight = self.key.unflatten(0, (self.kv_heads, -1))
        return rotate((pools.float()[:, :, None] @ weight).flatten(1, 2), angles)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Unmasked logits [batch, heads, rows, blocks] of projected queries and keys."""
        keys = keys.unflatten(1, (self.kv_heads, -1))
        queries = queries.unflatten(1, (self.kv_heads, -1)) * queries.shape[-1] ** -0.5
        return (queries @ keys.transpose(-1, -2)).flatten(1, 2)

    def forward(
        self, query: Tensor, pools: Tensor, query_angles: Angles, key_angles: Angles
    ) -> Tensor:
        """Logits [batch, heads, rows, blocks], float32, before mask and softmax.

        query [batch, heads, rows, d], block means, and pools [batch, kv heads, blocks, 3 d] from
        `pool_keys` are before RoPE; angles are those of each block's first token.
        """
        return self.logits(self.queries(query, query_angles), self.keys(pools, key_angles))


class DecodeGate(nn.Module):
    """Scores blocks of keys for single queries, jointly for all query heads of a kv head.

    Weights are `query` [kv heads, group, d, g], which projects the concatenated queries of the
    group, and `key` [kv heads, 3 d, g]. With `norms`, projected queries and keys are divided by
    their root mean square and multiplied by `query_norm` and `key_norm` [g], before RoPE.
    """

    def __init__(self, heads: int, kv_heads: int, d: int, gate_dim: int, norms: bool = False):
        super().__init__()
        self.kv_heads = kv_heads
        group = heads // kv_heads
        self.query = _projection(kv_heads, group * d, gate_dim)
        self.query = nn.Parameter(self.query.detach().unflatten(1, (group, d)))
        self.key = _projection(kv_heads, 3 * d, gate_dim)
        self.query_norm = nn.Parameter(torch.ones(gate_dim)) if norms else None
        self.key_norm = nn.Parameter(torch.ones(gate_dim)) if norms else None

    def queries(self, query: Tensor, angles: Angles) -> Tensor:
        """Project queries [batch, heads, n, d] to [batch, kv heads, n, g], float32."""
        query = query.float().unflatten(1, (self.kv_heads, -1)).transpose(2, 3).flatten(3)
        return rotate(_normed(query @ self.query.flatten(1, 2), self.query_norm), angles)

    def keys(self, pools: Tensor, angles: Angles) -> Tensor:
        """Project pools [batch, kv heads, blocks, 3 d] to [batch, kv heads, blocks, g], float32."""
        return rotate(_normed(pools.float() @ self.key, self.key_norm), angles)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Unmasked logits [batch, kv heads, n, blocks] of projected queries and keys."""
        return queries * queries.shape[-1] ** -0.5 @ keys.transpose(-1, -2)

    def forward(
        self, query: Tensor, pools: Tensor, query_angles: Angles, key_angles: Angles
    ) -> Tensor:
        """Logits [batch, kv heads, n, blocks], float32, before mask and softmax.

        query [batch, heads, n, d] and pools [batch, kv heads, blocks, 3 d] from `pool_keys` are
        before RoPE; angles are those of the queries, and of each block's first token.
        """
        return self.logits(self.queries(query, query_angles), self.keys(pools, key_angles))


def _normed(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else rms_norm(x, weight.shape, weight, NORM_EPS)


def _projection(heads: int, inputs: int, outputs: int) -> nn.Parameter:
    """One matrix per head [heads, inputs, outputs], float32, initialized as in Glorot & Bengio
    (2010)."""
    bound = (6 / (inputs + outputs)) ** 0.5
    return nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-bound, bound))


def pool_keys(key: Tensor, is_real: Tensor) -> Tensor:
    """Concatenate maximum, minimum and mean of each block's keys: [batch, kv heads, blocks, 3 d].

    key [batch, kv heads, blocks, block_size, d] is before RoPE; is_real [batch, 1, blocks,
    block_size, 1], bool, marks real tokens, the only ones to count. Returns float32, 0 for a block
    without real tokens.
    """
    key = key.float()
    highest = torch.where(is_real, key, -torch.inf).amax(3)
    lowest = torch.where(is_real, key, torch.inf).amin(3)
    mean = torch.where(is_real, key, 0).sum(3) / is_real.sum(3).clamp_min(1)
    return torch.where(is_real.any(3), torch.cat([highest, lowest, mean], -1), 0)


class Description(Strict):
    """The model that gates belong to, and their shape (gates.json)."""

    base: str
    """Name or folder of the model, for messages."""
    model_type: str
    block_size: int = Field(ge=1)
    """Tokens per block."""
    gate_dim: int = Field(ge=2, multiple_of=2)
    stages: tuple[Stage, ...]
    norms: bool = False
    """Whether decode gates normalize projected queries and keys."""
    layers: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    dtype: str
    signature: tuple[tuple[float, ...], ...]
    """For each layer, sums over parts of the query and key of one token, computed in dtype.

    They identify the weights of the layer's query and key, and of the MLPs before it."""

    @field_validator("dtype")
    @classmethod
    def _is_known(cls, name: str) -> str:
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"{name} is not a floating-point dtype of torch")
        return name


class Gates(nn.Module):
    """The gates of all full-attention layers of one model.

    `prefill` and `decode` map layer indices, as text, to gates; a stage that is not in
    description.stages is empty.
    """

    prefill: nn.ModuleDict
    decode: nn.ModuleDict

    def __init__(self, description: Description):
        super().__init__()
        self.description = d = description
        shape = d.heads, d.kv_heads, d.head_dim, d.gate_dim
        kinds: dict[Stage, Callable[..., nn.Module]] = {
            "prefill": PrefillGate,
            "decode": partial(DecodeGate, norms=d.norms),
        }
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
        stages: Iterable[Stage] = STAGES,
    ) -> "Gates":
        """Create untrained gates for `model`, in float32 on its device.

        gate_dim None: the model's head dimension.

        Raises:
            ValueError: gate_dim is odd or block_size below 1, the model's layers differ in shape,
                its RoPE cannot be undone, or `apply` would refuse it.
        """
        description = describe(model, block_size, gate_dim, tuple(stages))
        return cls(description).to(model.device)

    def save(self, folder: str | Path) -> None:
        """Write gates.safetensors, then gates.json, which marks both as complete."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            save_file(weights, Path(partial) / WEIGHTS)
            text = self.description.model_dump_json(indent=2) + "\n"
            (Path(partial) / DESCRIPTION).write_text(text)
            (folder / DESCRIPTION).unlink(missing_ok=True)
            for name in (WEIGHTS, DESCRIPTION):
                (Path(partial) / name).replace(folder / name)

    @classmethod
    def open(cls, folder: str | Path, model: PreTrainedModel) -> "Gates":
        """Load the gates saved in `folder` for `model`, on its device.

        The model must be the one they were trained for: the same shape, and the same query and key
        of a probe token in each layer within 1e-4. In half precision the tolerance is the rounding
        error, which grows with depth, so a slightly fine-tuned model passes. Value and output
        projections are not compared.

        Raises:
            ValueError: the folder has no gates, a gate is missing or has another shape, or the
                gates belong to another model.
        """
        folder = Path(folder)
        for name in (DESCRIPTION, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(f"gates: {folder} has no {name}; give a folder with saved gates")
        try:
            description = Description.model_validate_json((folder / DESCRIPTION).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise _broken(folder / DESCRIPTION, f"{key}: {message}" if key else message) from None
        d = description
        model_description = describe(model, d.block_size, d.gate_dim, d.stages)
        _check_same_model(folder, description, model_description)
        try:
            weights = load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise _broken(folder / WEIGHTS, str(error)) from None
        return cls.of(description, weights, folder / WEIGHTS, model)

    @classmethod
    def of(
        cls,
        description: Description,
        weights: dict[str, Tensor],
        file: Path,
        model: PreTrainedModel,
    ) -> "Gates":
        """Gates with `weights`, read from `file`, in float32 on the device of `model`.

        Raises:
            ValueError: a weight is missing, unknown or of another shape.
        """
        with torch.device("meta"):
            gates = cls(description)
        expected = gates.state_dict()
        for name in sorted(expected.keys() | weights.keys()):
            if name not in weights or name not in expected:
                state = "missing" if name not in weights else "not one of these gates"
                raise _broken(file, f"{name} is {state}")
            if weights[name].shape != expected[name].shape:
                shapes = f"{list(weights[name].shape)}, not {list(expected[name].shape)}"
                raise _broken(file, f"{name} has shape {shapes}")
        gates.load_state_dict(weights, assign=True)
        return gates.to(model.device, torch.float32).eval().requires_grad_(False)


def describe(
    model: PreTrainedModel, block_size: int, gate_dim: int | None, stages: tuple[Stage, ...]
) -> Description:
    """What gates of this shape for `model` would say of it; gate_dim None: its head dimension.

    Raises:
        ValueError: as `Gates.new`.
    """
    rotation = Rotation(model)
    rotation.remove()
    shapes = set(rotation.shapes.values())
    if len(shapes) > 1:
        raise ValueError(
            f"model: its layers have different head shapes {sorted(shapes)}, but gates need a "
            "common one; use a model with uniform layers"
        )
    heads, kv_heads, d = shapes.pop()
    gate_dim = d if gate_dim is None else gate_dim
    if gate_dim < 2 or gate_dim % 2:
        raise ValueError(
            f"gate_dim: {gate_dim} is odd or below 2, but RoPE rotates pairs; give an even number"
        )
    if block_size < 1:
        raise ValueError(f"block_size: {block_size} is below 1; give at least 1 token")
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
    return tuple(part.sum().item() for part in signature.double().tensor_split(SIGNATURE_PARTS))


def _broken(file: Path, problem: str) -> ValueError:
    return ValueError(f"gates: {file}: {problem}; distill or copy them again")


def _check_same_model(folder: Path, gates: Description, model: Description) -> None:
    for name in ("model_type", "layers", "heads", "kv_heads", "head_dim", "rope_theta"):
        expected, actual = getattr(gates, name), getattr(model, name)
        if expected != actual:
            raise ValueError(
                f"gates: {folder} belongs to a model with {name} {expected} ({gates.base}), but "
                f"this model has {actual}; distill gates for this one"
            )
    # Rounding in half precision changes a query; fine-tuning in float32 changes it by more.
    coarser = max(torch.finfo(getattr(torch, d.dtype)).eps for d in (gates, model))
    tolerances = [max(1e-4, 4 * coarser * (layer + 1)) for layer in model.layers]
    sums = gates.signature, model.signature
    if [*map(len, sums[0])] != [*map(len, sums[1])] or any(
        math.dist(expected, actual) > tolerance * math.hypot(*actual)
        for expected, actual, tolerance in zip(*sums, tolerances, strict=True)
    ):
        raise ValueError(
            f"gates: {folder} belongs to a model of the same shape with other weights "
            f"({gates.base}); distill gates for this one"
        )
