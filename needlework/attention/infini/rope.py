"""A family's own rotary embedding (RoPE): removed from its layers, and applied explicitly.

Infini-attention stores q and k before RoPE and rotates them by positions within a segment. Layers
therefore get the identity rotation, cos 1 and sin 0, and the family's own function rotates their
q and k later: half or interleaved pairs, all dimensions or the first.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, PreTrainedModel

PROBE = "infini_probe"
"""Name of the attention function that only records its queries and keys."""
PROBE_TOKENS = 8


def remove_rope(attention: nn.Module) -> RemovableHandle:
    """Make `attention` pass q and k before RoPE to its attention function."""
    return attention.register_forward_pre_hook(_identity_rotation, with_kwargs=True)


def _identity_rotation(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    match kwargs.get("position_embeddings"):
        case (Tensor() as cos, Tensor() as sin):
            kwargs["position_embeddings"] = torch.ones_like(cos), torch.zeros_like(sin)
    return args, kwargs


def rotate(attention: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE with the function of `attention`'s family.

    Args:
        attention: a layer of the family.
        x: [B, N, h, t, D], queries or keys before RoPE.
        cos: [B or 1, 1, t, D'], of the positions; D' depends on the family.
        sin: like cos.
    """
    function = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    # Some families split off the unrotated dimensions before they call their function.
    width = getattr(attention, "rotary_ndims", x.shape[-1])
    if width < x.shape[-1]:
        rotated = rotate(attention, x[..., :width], cos, sin)
        return torch.cat([rotated, x[..., width:]], dim=-1)
    if cos.shape[-1] == width and _rotates_halves(function):
        half = width // 2
        quarter_turn = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * cos.unsqueeze(2) + quarter_turn * sin.unsqueeze(2)
    # The function rotates queries and keys together; pass keys without heads.
    return function(x, x[:, :, :0], cos, sin)[0]


@cache
def _rotates_halves(function: Callable) -> bool:
    """Whether the function is the common form, for which `rotate` fixes the order of sums: another
    order of adding gradients would train other weights from the same seed."""
    x = torch.arange(1.0, 5.0).view(1, 1, 4)
    rotated, _ = function(x, x, torch.zeros(1, 4), torch.ones(1, 4))
    return rotated.flatten().tolist() == [-3, -4, 1, 2]


def angles(rotary: nn.Module, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [t, D'] of `positions` (int64 [t]) in full-attention layers.

    Raises:
        ValueError: they have no RoPE, or a form without cos and sin (complex numbers).
    """
    like = torch.empty(0, dtype=dtype, device=positions.device)
    by_kind = getattr(rotary, "layer_types", None)
    if by_kind and "full_attention" not in getattr(rotary, "rope_type", ()):
        raise ValueError("its full-attention layers have no rotary embedding")
    match rotary(like, positions[None], *(["full_attention"] if by_kind else [])):
        case (Tensor() as cos, Tensor() as sin):
            return cos[0], sin[0]
    raise ValueError("its rotary embedding does not return cosines and sines")


def unrotated_layers(model: PreTrainedModel, attentions: dict[int, nn.Module]) -> list[int]:
    """Indices of the layers without RoPE (NoPE), found by running the model.

    Two forwards of a few tokens, with and without RoPE, use an attention that returns zero, so that
    RoPE alone can make their queries and keys differ. Their positions differ, so that a layer where
    `remove_rope` has no effect is not mistaken for NoPE.

    Args:
        model: with the attention implementation PROBE.
        attentions: the attention modules to examine, by layer index.

    Raises:
        ValueError: a layer does more to its queries and keys than RoPE.
    """
    training = model.training
    model.eval()
    positions = torch.arange(PROBE_TOKENS, device=model.device)
    rotated = _queries_and_keys(model, positions)
    handles = [remove_rope(attention) for attention in attentions.values()]
    plain = _queries_and_keys(model, positions.flip(0))
    for handle in handles:
        handle.remove()
    model.train(training)
    cos, sin = angles(model.base_model.rotary_emb, positions, model.dtype)
    unrotated = []
    for number, attention in attentions.items():
        if len(rotated[number]) != 1:
            raise ValueError(
                f"layer {number} calls attention {len(rotated[number])} times per forward"
            )
        pairs = list(zip(plain[number][0], rotated[number][0], strict=True))
        if len(heads := pairs[0][0][0]) != model.config.num_attention_heads:
            raise ValueError(f"layer {number} has {len(heads)} query heads")
        if all(torch.equal(*pair) for pair in pairs):
            unrotated.append(number)
        elif not all(_is_rotation(attention, *pair, cos, sin) for pair in pairs):
            raise ValueError(f"layer {number} changes its queries and keys by more than RoPE")
    return unrotated


def _is_rotation(attention: nn.Module, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotate` maps x to y, both [1, h, t, D]."""
    try:
        rotated = rotate(attention, x[:, None], cos[None, None], sin[None, None])[:, 0]
    except (AttributeError, RuntimeError, TypeError, ValueError):
        # The family's function takes other arguments or shapes.
        return False
    tolerance = 8 * torch.finfo(y.dtype).eps * y.abs().max()
    return bool((rotated - y).abs().max() <= tolerance)


@torch.no_grad()
def _queries_and_keys(
    model: PreTrainedModel, positions: Tensor
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """Queries and keys of each layer and call of attention, for tokens at `positions`."""
    ids = torch.arange(len(positions), device=model.device)[None] % model.config.vocab_size
    recorded: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    model.base_model(input_ids=ids, position_ids=positions[None], use_cache=False, infini=recorded)
    return recorded


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    infini: dict[int, list[tuple[Tensor, Tensor]]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function that records queries and keys and returns zeros."""
    if infini is None:
        raise ValueError("its layers do not pass arguments on to attention")
    layer = module.layer_idx
    assert isinstance(layer, int)
    infini[layer].append((query, key))
    rows, heads, tokens, _ = query.shape
    return value.new_zeros(rows, tokens, heads, value.shape[-1]), None


AttentionInterface.register(PROBE, _record)
