"""Undo RoPE on queries and keys of any model family, and apply it to the inputs of gates.

The attention function gets rotated queries and keys. How to undo the rotation is determined once,
with the same token at two positions: the right inverse makes both equal. Where a module of the
layer returns the same numbers, such as a projection or a norm, its output is read instead.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from needlework.attention.apply import replaceable_layers
from needlework.attention.layers import attention_modules

NAME = "needlework_rotation"
"""Name of the attention and mask functions that `_probe` registers with transformers."""
# Far enough to rotate the fastest pair by more than half a turn (61 mod 2 pi = 4.45).
POSITIONS = (0, 61)
TOLERANCE = 16
"""Largest error of an inverse, relative to the largest entry of a query or key, in units of the
machine epsilon of the dtype or of float32, whichever is larger."""


Name = Literal["query", "key"]
Angles = tuple[Tensor, Tensor]
"""Cosines and sines."""
_Inverse = Callable[[nn.Module, Tensor, Angles | None], Tensor]
"""(attention module, rotated queries or keys, angles) -> queries or keys before RoPE."""


class Rotation:
    """Inverse of RoPE in a model's full-attention layers.

    Hooks on these layers record the angles of the current forward. Supported are layers without
    RoPE (NoPE), pairs as halves or interleaved, rotation of a part of the dimensions and of latent
    keys (DeepSeek), and scaled angles (YaRN, LongRoPE). Other forms are refused.
    """

    def __init__(self, model: PreTrainedModel):
        """Find the inverse of each layer with one forward of two tokens, without attention.

        Raises:
            ValueError: the rotation of a full-attention layer is not supported, positions are
                learned, or `apply` would refuse the model.
        """
        layers = replaceable_layers(model)
        self._modules: dict[int, nn.Module] = {
            layer: module for layer, module in attention_modules(model) if layer in layers
        }
        self._angles: dict[int, Angles] = {}
        self._hooks = [
            module.register_forward_pre_hook(partial(self._on_attention, layer), with_kwargs=True)
            for layer, module in self._modules.items()
        ]
        self._outputs: dict[tuple[int, Name], Tensor] = {}
        self._model = model
        self._frequencies: dict[int, tuple[Tensor, float]] = {}
        self._inverses: dict[int, _Inverse] = {}
        self.shapes: dict[int, tuple[int, int, int]] = {}
        """Query heads, key heads and head dimension of each layer."""
        self.signatures: dict[int, Tensor] = {}
        """Query and key of a fixed token before RoPE [heads * d + kv heads * d], float32: they
        identify a layer's projections."""
        try:
            with _outputs(self._modules) as outputs:
                probed = _probe(model)
            for layer, (query, key) in probed.items():
                if layer in self._modules:
                    self._find_inverse(layer, query, key)
                    if not _has_temperature(model):
                        self._find_outputs(layer, query, key, outputs[layer])
        except ValueError:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the hooks from the model; further calls have no effect."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._angles, self._outputs = [], {}, {}

    def plain(
        self, layer: int, name: Name, x: Tensor, heads: int | None = None
    ) -> Iterator[Tensor]:
        """Like `undo` for the queries or keys of all new tokens, `heads` heads at a time: the
        output of their projection or norm if there is one."""
        heads = heads or x.shape[1]
        output = self._outputs.get((layer, name))
        if output is not None:
            output = output.reshape(len(x), -1, *x.shape[1::2]).transpose(1, 2)
            if output.shape == x.shape:
                yield from (part.float() for part in output.split(heads, 1))
                return
        yield from (self.undo(layer, part) for part in x.split(heads, 1))

    def undo(self, layer: int, x: Tensor) -> Tensor:
        """Queries or keys [batch, heads, new tokens, d] before RoPE, float32.

        Call it while the layer runs, because it uses the angles of the current forward.
        """
        return self._inverses[layer](self._modules[layer], x.float(), self._angles.get(layer))

    def at(self, positions: Tensor, d: int) -> Angles:
        """Cosines and sines [..., d], float32, for `rotate` with positions [...] (int64).

        Frequencies are the model's own if it rotates d dimensions, else theta^(-2i/d).
        """
        if d not in self._frequencies:
            self._frequencies[d] = self._find_frequencies(d)
        frequencies, scaling = self._frequencies[d]
        angles = positions[..., None] * frequencies.to(positions.device)
        angles = torch.cat([angles, angles], -1)
        return angles.cos() * scaling, angles.sin() * scaling

    @property
    def theta(self) -> float:
        """Base of the model's frequencies."""
        config = self._model.config.get_text_config(decoder=True)
        rope = getattr(config, "rope_parameters", None) or {}
        return float(rope.get("full_attention", rope).get("rope_theta", 10000.0))

    def _find_frequencies(self, d: int) -> tuple[Tensor, float]:
        for module in self._model.base_model.modules():
            # Some families have separate frequencies for each kind of layer.
            for kind in ("", "full_attention_"):
                own = getattr(module, f"{kind}inv_freq", None)
                scaling = getattr(module, f"{kind}attention_scaling", None)
                if own is not None and scaling is not None and 2 * len(own) == d:
                    return own.float(), scaling
        return self.theta ** -(torch.arange(0, d, 2) / d), 1.0

    def _on_attention(self, layer: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        angles = kwargs.get("position_embeddings")
        if isinstance(angles, tuple) and len(angles) == 2:
            self._angles[layer] = angles

    def _find_inverse(self, layer: int, query: Tensor, key: Tensor) -> None:
        """Choose the inverse that makes a token at two positions equal [2, heads, 1, d]."""
        self.shapes[layer] = query.shape[1], key.shape[1], query.shape[-1]
        candidates = (_identity, _unrotate, _unrotate_last, _unrotate_first)
        errors = [self._error(layer, inverse, query, key) for inverse in candidates]
        error = min(errors)
        eps = max(torch.finfo(dtype).eps for dtype in (query.dtype, torch.float32))
        is_undone = error <= TOLERANCE * eps
        if _has_learned_positions(self._model) or not (is_undone or _has_rope(self._model)):
            raise ValueError(
                f"model: model_type {self._model.config.get_text_config(decoder=True).model_type!r}"
                " adds positions to its embeddings instead of rotating queries and keys (RoPE); "
                "use a method without gates"
            )
        if not is_undone:
            raise ValueError(
                f"model: layer {layer} of model_type "
                f"{self._model.config.get_text_config(decoder=True).model_type!r} rotates its "
                "queries and keys in a way that cannot be undone; use a method without gates"
            )
        self._inverses[layer] = candidates[errors.index(error)]
        parts = [self.undo(layer, x)[0].flatten() for x in (query, key)]
        self.signatures[layer] = torch.cat(parts).cpu()

    def _find_outputs(
        self, layer: int, query: Tensor, key: Tensor, outputs: list[tuple[nn.Module, Tensor]]
    ) -> None:
        """Record the output of the module that returns queries, or keys, before RoPE."""
        eps = max(torch.finfo(dtype).eps for dtype in (query.dtype, torch.float32))
        pair: tuple[tuple[Name, Tensor], ...] = (("query", query), ("key", key))
        for name, x in pair:
            plain = self.undo(layer, x).transpose(1, 2)
            largest = plain.abs().max()
            errors = [
                (float((output.reshape_as(plain).float() - plain).abs().max()), module)
                for module, output in outputs
                # With more heads than one, [batch, heads, tokens, d] is another shape.
                if output.shape in (plain.shape, plain.flatten(2).shape)
            ]
            error, module = min(errors, key=lambda pair: pair[0], default=(torch.inf, None))
            if module is not None and largest > 0 and error <= TOLERANCE * eps * float(largest):
                hook = partial(self._on_output, (layer, name))
                self._hooks.append(module.register_forward_hook(hook))
        drop = partial(self._drop_outputs, layer)
        self._hooks.append(self._modules[layer].register_forward_hook(drop))

    def _on_output(
        self, key: tuple[int, Name], module: nn.Module, args: tuple, output: Tensor
    ) -> None:
        self._outputs[key] = output.detach()

    def _drop_outputs(self, layer: int, *_: object) -> None:
        self._outputs.pop((layer, "query"), None)
        self._outputs.pop((layer, "key"), None)

    def _error(self, layer: int, inverse: _Inverse, query: Tensor, key: Tensor) -> float:
        """Largest difference between the two positions, relative to the largest entry."""
        error = 0.0
        for x in (query, key):
            try:
                first, second = inverse(self._modules[layer], x.float(), self._angles.get(layer))
            except (AttributeError, RuntimeError, TypeError):
                # The family has no such function or angles, or other shapes.
                return torch.inf
            largest = x.float().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            error = max(error, float((first - second).abs().max() / largest))
        return error


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Apply RoPE to x [batch, heads, n, d], pairing halves; angles of `at` ([batch or 1, n, d])."""
    cos, sin = (angle[:, None] for angle in angles)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def _identity(module: nn.Module, x: Tensor, angles: Angles | None) -> Tensor:
    return x


def _unrotate(module: nn.Module, x: Tensor, angles: Angles | None) -> Tensor:
    """Apply the family's own rotation with the negative angles."""
    if angles is None:
        raise TypeError("the layer gets no angles")
    rotation = sys.modules[type(module).__module__].apply_rotary_pos_emb
    cos, sin = (angle.to(x.device, torch.float32) for angle in angles)
    # Above 1 if the family scales attention through its angles, and inexact in bfloat16.
    scale = cos * cos + sin * sin
    return rotation(x, x[:, :0], cos / scale, -sin / scale)[0]


def _unrotate_last(module: nn.Module, x: Tensor, angles: Angles | None) -> Tensor:
    """Undo the rotation of the last dimensions only (latent attention)."""
    if angles is None:
        raise TypeError("the layer gets no angles")
    d = angles[0].shape[-1]
    return torch.cat([x[..., :-d], _unrotate(module, x[..., -d:], angles)], -1)


def _unrotate_first(module: nn.Module, x: Tensor, angles: Angles | None) -> Tensor:
    """Undo the rotation of the first dimensions only (partial RoPE)."""
    if angles is None:
        raise TypeError("the layer gets no angles")
    d = angles[0].shape[-1]
    return torch.cat([_unrotate(module, x[..., :d], angles), x[..., d:]], -1)


@contextmanager
def _outputs(
    layers: dict[int, nn.Module],
) -> Iterator[dict[int, list[tuple[nn.Module, Tensor]]]]:
    """Collect the tensors that modules within each attention layer return."""
    outputs: dict[int, list[tuple[nn.Module, Tensor]]] = {layer: [] for layer in layers}

    def collect(layer: int, module: nn.Module, args: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            outputs[layer].append((module, output.detach()))

    hooks = [
        module.register_forward_hook(partial(collect, layer))
        for layer, attention in layers.items()
        for module in attention.modules()
        if module is not attention
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _has_temperature(model: PreTrainedModel) -> bool:
    """Whether queries at far positions, which `_probe` does not reach, are scaled."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    return bool(getattr(config, "attn_temperature_tuning", False)) or "llama_4_scaling_beta" in rope


def _has_rope(model: PreTrainedModel) -> bool:
    names = (type(module).__name__.lower() for module in model.modules())
    return any("rotary" in name or "rope" in name for name in names)


def _has_learned_positions(model: PreTrainedModel) -> bool:
    return not _has_rope(model) and any("position" in name for name, _ in model.named_modules())


@torch.no_grad()
def _probe(model: PreTrainedModel) -> dict[int, tuple[Tensor, Tensor]]:
    """Query and key of each layer for the same token at both POSITIONS: [2, heads, 1, d].

    Attention returns zeros, so that no layer's input depends on the position.
    """
    recorded: dict[int, tuple[Tensor, Tensor]] = {}

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        assert isinstance(layer, int)
        recorded[layer] = query, key
        return value.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[-1]), None

    token = torch.linspace(-1, 1, model.get_input_embeddings().weight.shape[-1])
    stock = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = attention
    ALL_MASK_ATTENTION_FUNCTIONS[NAME] = lambda **kwargs: None
    try:
        model.set_attn_implementation(NAME)
        model.base_model(
            inputs_embeds=token.repeat(2, 1, 1).to(model.device, model.dtype),
            position_ids=torch.tensor(POSITIONS, device=model.device)[:, None],
            use_cache=False,
        )
    except IndexError:
        raise ValueError(
            f"model: model_type {model.config.get_text_config(decoder=True).model_type!r} has "
            f"fewer than {max(POSITIONS) + 1} learned positions and no RoPE; use a method "
            "without gates"
        ) from None
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model: model_type {model.config.get_text_config(decoder=True).model_type!r} cannot "
            f"run on the embeddings of one token, which gates need ({_first_sentence(error)}); use "
            "a method without gates"
        ) from None
    finally:
        model.set_attn_implementation(stock)
        del ALL_ATTENTION_FUNCTIONS[NAME], ALL_MASK_ATTENTION_FUNCTIONS[NAME]
    return recorded


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0]
