"""Infini-attention: attention within segments plus a compressive memory of all earlier segments.

Munkhdalai, Faruqui and Gopal (2024), "Leave No Context Behind". In each head, with q and k before
RoPE in the memory and after RoPE within the segment,

    out = g A_mem + (1 - g) A_local,    g = act(beta), one beta per query head and layer,

where the memory is read before the segment is written to it. While the memory is empty, a segment's
output is its local attention, or (1 - g) A_local as published with `gate_empty_memory`.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as apply_dropout
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from needlework.attention.infini.cache import InfiniCache, InfiniCacheLayer
from needlework.attention.infini.memory import read, sigma, state_dtype, write
from needlework.attention.infini.rope import rotate
from needlework.attention.infini.segments import Segments
from needlework.attention.kernels.gather import SoftmaxTerms
from needlework.config.attention.infini import Infini

NAME = "infini"
"""Name of the attention and mask functions in transformers, and of the forward argument."""


class Gate(nn.Module):
    """g = act(beta), [H]: the share of memory in each query head's output."""

    def __init__(self, heads: int, system: Infini, layer: int):
        super().__init__()
        self.system, self.layer = system, layer
        self.balance_factors = nn.Parameter(torch.empty(heads, dtype=torch.float32))
        self.reset()

    def _apply(self, fn, recurse=True):
        # Conversions such as model.half() must not reduce the precision of beta.
        def keep_precision(x: Tensor) -> Tensor:
            new = fn(x)
            return x.to(new.device) if new.dtype.itemsize < x.dtype.itemsize else new

        return super()._apply(keep_precision, recurse)

    def reset(self) -> None:
        """Set beta to its initial value."""
        match self.system.balance_init_type:
            case "zeros":
                init.zeros_(self.balance_factors)
            case "randn":
                init.normal_(self.balance_factors)
            case "constant":
                value = self.system.balance_init_value
                value = value[self.layer] if isinstance(value, list) else value
                init.constant_(self.balance_factors, value)

    def forward(self) -> Tensor:
        beta = self.balance_factors
        match self.system.balance_act_type:
            case "sigmoid":
                return beta.sigmoid()
            case "hard_sigmoid":
                return (0.2 * beta + 0.5).clamp(0, 1)
            case "tanh":
                return beta.tanh()
            case "abs_tanh":
                return beta.tanh().abs()


@dataclass
class ForwardContext:
    """What the layers of one forward share."""

    segments: Segments
    cache: InfiniCache | None
    rotation: tuple[Tensor, Tensor]
    """cos and sin [S, D'] of the positions within a segment."""
    unrotated: frozenset[int]
    """Indices of the layers without RoPE."""


def infini_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    infini: ForwardContext,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention function of every layer; layers without a gate keep their own attention.

    Args:
        module: the attention module, with `layer_idx`, and with `gate` if its attention is
            replaced.
        query: [B, H, n, D] before RoPE.
        key: [B, G, n, D] before RoPE; query head h reads key/value head h // (H / G).
        value: [B, G, n, Dv].
        attention_mask: for layers that keep their own attention; `infini.segments` has the padding.
        infini: context of this forward, set by the model.
        scaling: factor of the local logits.
        dropout: dropout probability of the local attention weights.
        softcap: bound of the local logits (Gemma 2).
        s_aux: sinks of the local softmax, [H] (GPT-OSS).

    Returns:
        [B, n, H, Dv], and None for the weights.
    """
    gate = getattr(module, "gate", None)
    if not isinstance(gate, Gate):
        kwargs |= {"scaling": scaling, "dropout": dropout}
        return _stock_attention(
            module, query, key, value, attention_mask, softcap=softcap, s_aux=s_aux, **kwargs
        )
    segments, cache, layer = infini.segments, infini.cache, module.layer_idx
    assert isinstance(layer, int)
    state: InfiniCacheLayer | None = None if cache is None else cache.layers[layer]
    if state is not None and not state.is_initialized:
        state.lazy_initialization(key, value)
    keys = segments.to_slots(key, None if state is None else state.keys)
    values = segments.to_slots(value, None if state is None else state.values)
    # Within a single segment, queries need no slots: decoding computes one query, not S.
    is_single = segments.number == 1
    queries = query.unsqueeze(1) if is_single else segments.to_slots(query)

    rotation = None if layer in infini.unrotated else infini.rotation
    local_terms = SoftmaxTerms(scaling, dropout, softcap, s_aux)
    out = _local_attention(module, queries, keys, values, segments, rotation, local_terms)
    if gate.system.turn_on_memory:
        # Autocast would compute the memory's float32 products in half precision.
        with torch.autocast(query.device.type, enabled=False):
            out = _mix_memory(gate, out, queries, keys, values, segments, state)
    if cache is not None:
        cache.store(layer, keys, values, segments)
    if is_single:
        return out.squeeze(1).transpose(1, 2).contiguous(), None
    return segments.to_columns(out), None


def _stock_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    softcap: float | None,
    s_aux: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The family's own attention, for a layer that is not replaced."""
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    assert attention_mask is not None, "_sliding_mask makes one for every such layer"
    lowest = torch.finfo(query.dtype).min
    attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(
        ~attention_mask, lowest
    )
    eager = sys.modules[type(module).__module__].eager_attention_forward
    extra = {"softcap": softcap, "s_aux": s_aux}
    return eager(module, query, key, value, attention_mask, **extra, **kwargs)


def _sliding_mask(*, local_size: int | None = None, **kwargs: Any) -> Tensor | None:
    """bool [B, 1, n, keys] for sliding-window layers; None for others, which would be n x n."""
    if local_size is None:
        return None
    return sdpa_mask(local_size=local_size, **{**kwargs, "allow_is_causal_skip": False})


def _local_attention(
    module: nn.Module,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Segments,
    rotation: tuple[Tensor, Tensor] | None,
    terms: SoftmaxTerms,
) -> Tensor:
    """Causal softmax attention within each segment.

    queries [B, N, H, Q, D], keys [B, N, G, S, D], values [B, N, G, S, Dv], before RoPE; `rotation`
    None: the layer has no RoPE. Returns [B, N, H, Q, Dv].
    """
    rows, number, heads = queries.shape[:3]
    slot, mask = segments.slot, None
    if number == 1:
        mask = slot[:, None, :, None] >= torch.arange(keys.shape[3], device=slot.device)
    if rotation is not None:
        cos, sin = rotation
        keys = rotate(module, keys, cos[None, None], sin[None, None])
        position = (
            slot[:, None] if number == 1 else torch.arange(len(cos), device=slot.device)[None, None]
        )
        queries = rotate(module, queries, cos[position], sin[position])
    if terms.softcap is None and terms.sinks is None:
        groups = heads // keys.shape[2]
        # Decoding reads a whole segment for one query; copying it for each head would dominate.
        shares_keys = groups > 1 and number == 1 and not torch.is_grad_enabled()
        if groups > 1 and not shares_keys:
            keys, values = (x.repeat_interleave(groups, dim=2) for x in (keys, values))
        out = scaled_dot_product_attention(
            queries.flatten(0, 1),
            keys.flatten(0, 1),
            values.flatten(0, 1),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=terms.dropout,
            scale=terms.scaling,
            enable_gqa=shares_keys,
        )
    else:
        out = _softmax_attention(
            queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), mask, terms
        )
    return out.unflatten(0, (rows, number))


def _softmax_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, terms: SoftmaxTerms
) -> Tensor:
    """Attention with a softcap or sinks: queries [b, H, Q, D], keys [b, G, S, D].

    `mask` None: causal.
    """
    if mask is None:
        ones = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=keys.device)
        mask = ones.tril()
    grouped = queries.unflatten(1, (keys.shape[1], -1))
    scores = (grouped @ keys.unsqueeze(2).transpose(3, 4)).flatten(1, 2) * terms.scaling
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    scores = scores.to(state_dtype(scores.dtype)).masked_fill(~mask, -torch.inf)
    if terms.sinks is not None:
        sinks = terms.sinks.to(scores.dtype)[:, None, None]
        scores = torch.cat(
            [scores, sinks.expand(*scores.shape[:1], -1, scores.shape[2], 1)], dim=-1
        )
    weights = scores.softmax(-1)[..., : keys.shape[2]].to(values.dtype)
    weights = apply_dropout(weights, terms.dropout).unflatten(1, grouped.shape[1:3])
    return (weights @ values.unsqueeze(2)).flatten(1, 2)


def _mix_memory(
    gate: Gate,
    local: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Segments,
    state: InfiniCacheLayer | None,
) -> Tensor:
    """Mix memory into local attention [B, N, H, Q, Dv], and write finished segments to `state`."""
    system = gate.system
    if state is None or state.memory is None or state.norm is None:
        rows, _, heads, _, dim = keys.shape
        dtype = state_dtype(keys.dtype)
        memory = keys.new_zeros(rows, heads, dim, values.shape[-1], dtype=dtype)
        norm = keys.new_zeros(rows, heads, dim, dtype=dtype)
    else:
        memory, norm = state.memory, state.norm
    if segments.number > 1 or segments.any_finished:
        sigma_k = sigma(keys, system.sigma_scale) * segments.filled[:, :, None, :, None]
        memories, norms = write(sigma_k, values, memory, norm, system.update)
        if state is not None:
            row = torch.arange(len(keys), device=keys.device)
            state.memory = memories.detach()[row, segments.finished]
            state.norm = norms.detach()[row, segments.finished]
        memories, norms = memories[:, :-1], norms[:, :-1]
    else:
        memories, norms = memory.unsqueeze(1), norm.unsqueeze(1)

    grouped = sigma(queries, system.sigma_scale).unflatten(2, (keys.shape[2], -1))
    recalled = read(grouped.flatten(3, 4), memories, norms)
    recalled = recalled.unflatten(3, grouped.shape[3:5]).flatten(2, 3).to(local.dtype)
    share = gate().to(local.dtype)[:, None, None]
    if not system.gate_empty_memory:
        share = share * segments.has_memory[:, :, None, None, None]
    return share * recalled + (1 - share) * local


AttentionInterface.register(NAME, infini_attention)
AttentionMaskInterface.register(NAME, _sliding_mask)
