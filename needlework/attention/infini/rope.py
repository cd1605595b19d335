"""The rotary embedding (RoPE) of a model's own family: taken off its layers, and put on by hand.

Infini-attention remembers q and k from before RoPE and turns them by positions inside a segment.
Layers are therefore handed the rotation by no angle, cos 1 and sin 0, and the family's own function
turns their q and k later on: half or interleaved pairs, all dimensions or the first.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, PreTrainedModel

PROBE = "infini_probe"
"""Of the attention function that only notes the queries and keys it is given."""
PROBE_TOKENS = 8


def take_off(attention: nn.Module) -> RemovableHandle:
    """Let `attention` hand over q and k as they were before RoPE."""
    return attention.register_forward_pre_hook(_turn_by_nothing, with_kwargs=True)


def _turn_by_nothing(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    match kwargs.get("position_embeddings"):
        case (Tensor() as cos, Tensor() as sin):
            kwargs["position_embeddings"] = torch.ones_like(cos), torch.zeros_like(sin)
    return args, kwargs


def rotate(attention: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as the module `attention` has it.

    Args:
        attention: the layer; its family's module has the function.
        x: [B, N, h, t, D], queries or keys before RoPE.
        cos: [B or 1, 1, t, D'] of the positions; D' is the family's own.
        sin: as cos.
    """
    function = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    # Some families cut off the dimensions that stay unturned before they call their function.
    width = getattr(attention, "rotary_ndims", x.shape[-1])
    if width < x.shape[-1]:
        turned = rotate(attention, x[..., :width], cos, sin)
        return torch.cat([turned, x[..., width:]], dim=-1)
    if cos.shape[-1] == width and _turns_halves(function):
        half = width // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * cos.unsqueeze(2) + turned * sin.unsqueeze(2)
    # It turns queries and keys together: x, and no head at all.
    return function(x, x[:, :, :0], cos, sin)[0]


@cache
def _turns_halves(function: Callable) -> bool:
    """Whether the function is the common form, whose sums are then taken in one order for ever: to
    add gradients up in another would train other weights from the same seed."""
    x = torch.arange(1.0, 5.0).view(1, 1, 4)
    turned, _ = function(x, x, torch.zeros(1, 4), torch.ones(1, 4))
    return turned.flatten().tolist() == [-3, -4, 1, 2]


def angles(rotary: nn.Module, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [t, D'] of `positions` (int64 [t]) in full-attention layers.

    Raises:
        ValueError: they have none, or another form, of complex numbers say.
    """
    like = torch.empty(0, dtype=dtype, device=positions.device)
    by_kind = getattr(rotary, "layer_types", None)
    if by_kind and "full_attention" not in rotary.rope_type:
        raise ValueError("its full-attention layers have no rotary embedding")
    match rotary(like, positions[None], *(["full_attention"] if by_kind else [])):
        case (Tensor() as cos, Tensor() as sin):
            return cos[0], sin[0]
    raise ValueError("its rotary embedding is no pair of cosine and sine")


def unrotated_layers(model: PreTrainedModel, attentions: dict[int, nn.Module]) -> list[int]:
    """Numbers of the layers without RoPE (NoPE), found by what each layer does to its q and k.

    Two forwards of a few tokens, in which attention yields zero, so that both have the same
    queries and keys but for RoPE. They stand at different positions: what `take_off` does not reach
    is not taken for NoPE.

    Args:
        model: with the attention implementation PROBE.
        attentions: the attention modules in question, by number of their layer.

    Raises:
        ValueError: a layer has other attention than `rotate` and plain attention make up.
    """
    training = model.training
    model.eval()
    positions = torch.arange(PROBE_TOKENS, device=model.device)
    turned = _queries_and_keys(model, positions)
    handles = [take_off(attention) for attention in attentions.values()]
    plain = _queries_and_keys(model, positions.flip(0))
    for handle in handles:
        handle.remove()
    model.train(training)
    cos, sin = angles(model.base_model.rotary_emb, positions, model.dtype)
    unrotated = []
    for number, attention in attentions.items():
        if len(turned[number]) != 1:
            raise ValueError(
                f"layer {number} calls attention {len(turned[number])} times a forward"
            )
        pairs = list(zip(plain[number][0], turned[number][0], strict=True))
        if len(heads := pairs[0][0][0]) != model.config.num_attention_heads:
            raise ValueError(f"layer {number} has {len(heads)} query heads")
        if all(torch.equal(*pair) for pair in pairs):
            unrotated.append(number)
        elif not all(_turns(attention, *pair, cos, sin) for pair in pairs):
            raise ValueError(f"layer {number} does not turn its queries and keys by RoPE alone")
    return unrotated


def _turns(attention: nn.Module, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotate` makes y of x, both [1, h, t, D]."""
    try:
        turned = rotate(attention, x[:, None], cos[None, None], sin[None, None])[:, 0]
    except (RuntimeError, TypeError, ValueError):
        # A function by this name that takes other arguments, or other shapes.
        return False
    tolerance = 8 * torch.finfo(y.dtype).eps * y.abs().max()
    return bool((turned - y).abs().max() <= tolerance)


@torch.no_grad()
def _queries_and_keys(
    model: PreTrainedModel, positions: Tensor
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """What attention is given in each layer, call by call, for as many tokens as `positions`."""
    ids = torch.arange(len(positions), device=model.device)[None] % model.config.vocab_size
    seen: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    model.base_model(input_ids=ids, position_ids=positions[None], use_cache=False, infini=seen)
    return seen


def _note(module, query, key, value, attention_mask, *, infini=None, **kwargs):
    if infini is None:
        raise ValueError("its layers hand no arguments down to attention")
    infini[module.layer_idx].append((query, key))
    rows, heads, tokens, _ = query.shape
    return value.new_zeros(rows, tokens, heads, value.shape[-1]), None


AttentionInterface.register(PROBE, _note)
