"""Queries and keys as they were before RoPE, of any family, and RoPE for what a gate compares.

Queries and keys reach the attention function rotated. How to turn them back is found out once, on
a token that stands at two positions: whatever makes both alike is what they were before.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from needlework.attention.apply import replaceable_layers
from needlework.attention.layers import attention_modules

NAME = "needlework_rotation"
# Far enough to turn the fastest pair by more than half a circle (61 mod 2 pi = 4.45).
POSITIONS = (0, 61)
# Of the largest number of a query or key, in roundings of its dtype, or of float32 if finer.
TOLERANCE = 16


class Rotation:
    """Turns queries and keys of a model's full-attention layers back to before RoPE.

    It hears the angles of the forward at hand from a hook on each of these layers. Layers that do
    not rotate (NoPE) give what they got. Rotation by halves, interleaved, of a part of the
    dimensions, of latent keys (DeepSeek) and scaled (YaRN, LongRoPE) is undone; what an unknown
    family does beyond that is refused.
    """

    def __init__(self, model: PreTrainedModel):
        """One forward of two tokens, without attention.

        Raises:
            ValueError: a full-attention layer rotates in a way that is not known here, positions
                are learned, or `apply` would refuse the model.
        """
        layers = replaceable_layers(model)
        self._modules: dict[int, nn.Module] = {
            layer: module for layer, module in attention_modules(model) if layer in layers
        }
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}
        self._hooks = [
            module.register_forward_pre_hook(partial(self._on_attention, layer), with_kwargs=True)
            for layer, module in self._modules.items()
        ]
        self._model = model
        self._frequencies: dict[int, tuple[Tensor, float]] = {}
        self._ways: dict[int, Callable] = {}
        self.shapes: dict[int, tuple[int, int, int]] = {}
        """Query heads, key heads and head dimension of each layer."""
        self.signatures: dict[int, Tensor] = {}
        """Query and key of one fixed token before RoPE [heads * d + kv heads * d], float32: they
        tell a layer's projections from those of another model."""
        try:
            for layer, (query, key) in _probed(model).items():
                if layer in self._modules:
                    self._find_way(layer, query, key)
        except ValueError:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the hooks off the model. Again: no effect."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._angles = [], {}

    def undo(self, layer: int, x: Tensor) -> Tensor:
        """The forward's queries or keys [batch, heads, new tokens, d] before RoPE, float32.

        To be called while the layer computes: the angles are those of the forward at hand.
        """
        return self._ways[layer](self._modules[layer], x.float(), self._angles.get(layer))

    def at(self, positions: Tensor, d: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [..., d], float32, for `rotate` to positions [...] (int64).

        The model's own frequencies where it rotates d dimensions, else theta^(-2i/d).
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
            # Some families keep frequencies by kind of layer.
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

    def _find_way(self, layer: int, query: Tensor, key: Tensor) -> None:
        """Take the way that makes a token at two positions alike [2, heads, 1, d]."""
        self.shapes[layer] = query.shape[1], key.shape[1], query.shape[-1]
        error, way = min(
            ((self._error(layer, way, query, key), way) for way in (_as_is, _undone, _last_undone)),
            key=lambda found: found[0],
        )
        eps = max(torch.finfo(dtype).eps for dtype in (query.dtype, torch.float32))
        if error > TOLERANCE * eps:
            raise ValueError(
                f"model: layer {layer} of model_type "
                f"{self._model.config.get_text_config(decoder=True).model_type!r} rotates its "
                "queries and keys in a way that cannot be undone; use a system without gates"
            )
        self._ways[layer] = way
        parts = [self.undo(layer, x)[0].flatten() for x in (query, key)]
        self.signatures[layer] = torch.cat(parts).cpu()

    def _error(self, layer: int, way: Callable, query: Tensor, key: Tensor) -> float:
        """Largest difference between the two positions, as a share of the largest number."""
        found = 0.0
        for x in (query, key):
            try:
                one, other = way(self._modules[layer], x.float(), self._angles.get(layer))
            except (AttributeError, RuntimeError, TypeError):
                # The family has no such function, or one of other shapes.
                return torch.inf
            largest = x.float().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            found = max(found, float((one - other).abs().max() / largest))
        return found


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE by halves of x [batch, heads, n, d], with angles of `at` ([batch or 1, n, d])."""
    cos, sin = (angle[:, None] for angle in angles)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def _as_is(module: nn.Module, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    return x


def _undone(module: nn.Module, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """The family's own rotation by the opposite angles."""
    turn = sys.modules[type(module).__module__].apply_rotary_pos_emb
    cos, sin = (angle.to(x.device, torch.float32) for angle in angles)
    # Above 1 where the family scales attention through its angles, and not quite 1 in bfloat16.
    scale = cos * cos + sin * sin
    return turn(x, x[:, :0], cos / scale, -sin / scale)[0]


def _last_undone(module: nn.Module, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """Only the last dimensions turn (latent attention)."""
    d = angles[0].shape[-1]
    return torch.cat([x[..., :-d], _undone(module, x[..., -d:], angles)], -1)


@torch.no_grad()
def _probed(model: PreTrainedModel) -> dict[int, tuple[Tensor, Tensor]]:
    """Query and key of each layer for the same token at POSITIONS: [2, heads, 1, d].

    Attention gives nothing, so that no layer's input depends on the position.
    """
    found = {}

    def attention(module, query, key, value, attention_mask, **kwargs):
        found[module.layer_idx] = query, key
        return value.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[-1]), None

    token = torch.linspace(-1, 1, model.get_input_embeddings().weight.shape[-1])
    stock = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = attention
    ALL_MASK_ATTENTION_FUNCTIONS[NAME] = lambda **arguments: None
    try:
        model.set_attn_implementation(NAME)
        model.base_model(
            inputs_embeds=token.expand(2, 1, -1).to(model.device, model.dtype),
            position_ids=torch.tensor(POSITIONS, device=model.device)[:, None],
            use_cache=False,
        )
    except IndexError:
        raise ValueError(
            f"model: model_type {model.config.get_text_config(decoder=True).model_type!r} learned "
            f"fewer than {max(POSITIONS) + 1} positions and has no RoPE; use a system without gates"
        ) from None
    finally:
        model.set_attn_implementation(stock)
        del ALL_ATTENTION_FUNCTIONS[NAME], ALL_MASK_ATTENTION_FUNCTIONS[NAME]
    return found
