"""Infini-attention: attention inside segments, and a compressive memory of all earlier segments.

Munkhdalai, Faruqui and Gopal (2024), "Leave No Context Behind". In each head, with q and k from
before RoPE in the memory and after it inside the segment,

    out = g A_mem + (1 - g) A_local,    g = act(beta), one beta a query head and layer,

where the memory is read before the segment writes to it. A segment with no memory behind it is
its local attention alone, unless `gate_empty_memory` asks for the published form, (1 - g) A_local.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from needlework.attention.infini.cache import InfiniCache
from needlework.attention.infini.memory import read, sigma, state_dtype, write
from needlework.attention.infini.rope import rotate
from needlework.attention.infini.segments import Segments
from needlework.config.attention import Infini

NAME = "infini"
"""Of the attention and mask functions registered with transformers, and of the forward argument."""


class Gate(nn.Module):
    """g = act(beta), [H]: the share of memory in each query head's output."""

    def __init__(self, heads: int, system: Infini, layer: int):
        super().__init__()
        self.system, self.layer = system, layer
        self.balance_factors = nn.Parameter(torch.empty(heads, dtype=torch.float32))
        self.reset()

    def _apply(self, fn, recurse=True):
        # model.half() and the like narrow the weights, but not beta.
        def keep(x: Tensor) -> Tensor:
            new = fn(x)
            return x.to(new.device) if new.dtype.itemsize < x.dtype.itemsize else new

        return super()._apply(keep, recurse)

    def reset(self) -> None:
        """Give beta its initial value."""
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
class Pass:
    """What every layer of one forward pass needs to know."""

    segments: Segments
    cache: InfiniCache | None
    rotation: tuple[Tensor, Tensor]
    """cos and sin [S, D'] of the positions inside a segment."""
    unrotated: frozenset[int]
    """Numbers of the layers without RoPE."""


@dataclass
class _Terms:
    """What a model's attention adds to softmax(scaling q k^T) v."""

    scaling: float
    dropout: float
    softcap: float | None
    """Scores become softcap tanh(score / softcap) (Gemma 2)."""
    sinks: Tensor | None
    """[H], a score a head that takes a share of the softmax and brings no value (GPT-OSS)."""


def infini_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    infini: Pass,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """One layer's attention.

    Args:
        module: the attention layer, with `layer_idx`, and `gate` where it is not its family's own.
        query: [B, H, n, D] before RoPE.
        key: [B, G, n, D] before RoPE; query head h reads key/value head h // (H / G).
        value: [B, G, n, Dv].
        attention_mask: of layers that stay as they are; padding is known to `infini.segments`.
        infini: the pass, handed down by the model.
        scaling: factor of the local logits.
        dropout: probability of the local weights.
        softcap: bound of the local logits.
        s_aux: sinks of the local softmax, [H].

    Returns:
        [B, n, H, Dv], and None for the weights.
    """
    if not isinstance(getattr(module, "gate", None), Gate):
        terms = {"scaling": scaling, "dropout": dropout, "softcap": softcap, "s_aux": s_aux}
        return _stock(module, query, key, value, attention_mask, **terms, **kwargs)
    segments, cache, system = infini.segments, infini.cache, module.gate.system
    state = None if cache is None else cache.layers[module.layer_idx]
    if state is not None and not state.is_initialized:
        state.lazy_initialization(key, value)
    keys = segments.spread(key, state and state.keys)
    values = segments.spread(value, state and state.values)
    # Within a single segment queries need no slots: decoding computes one query, not S.
    alone = segments.number == 1
    queries = query.unsqueeze(1) if alone else segments.spread(query)

    out = _local(module, queries, keys, values, infini, _Terms(scaling, dropout, softcap, s_aux))
    if system.turn_on_memory:
        # Autocast would take the memory's products, float32, in half precision.
        with torch.autocast(query.device.type, enabled=False):
            out = _remember(module, out, queries, keys, values, infini, state)
    if cache is not None:
        cache.store(module.layer_idx, keys, values, segments)
    out = out.squeeze(1).transpose(1, 2).contiguous() if alone else segments.collect(out)
    return out, None


def _stock(module, query, key, value, attention_mask, *, softcap, s_aux, **kwargs):
    """Attention of a layer that stays as its family has it."""
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lowest = torch.finfo(query.dtype).min
    attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(
        ~attention_mask, lowest
    )
    eager = sys.modules[type(module).__module__].eager_attention_forward
    extra = {"softcap": softcap, "s_aux": s_aux}
    return eager(module, query, key, value, attention_mask, **extra, **kwargs)


def _mask(*, local_size: int | None = None, **kwargs) -> Tensor | None:
    """bool [B, 1, n, keys] for layers that slide; the others need none, n x n."""
    if local_size is None:
        return None
    return sdpa_mask(local_size=local_size, **{**kwargs, "allow_is_causal_skip": False})


def _local(module, queries, keys, values, infini: Pass, terms: _Terms) -> Tensor:
    """Causal softmax attention inside each segment: [B, N, H, Q, Dv]."""
    rows, number, heads = queries.shape[:3]
    slot, mask = infini.segments.slot, None
    if number == 1:
        mask = slot[:, None, :, None] >= torch.arange(keys.shape[3], device=slot.device)
    if module.layer_idx not in infini.unrotated:
        cos, sin = infini.rotation
        keys = rotate(module, keys, cos[None, None], sin[None, None])
        at = (
            slot[:, None] if number == 1 else torch.arange(len(cos), device=slot.device)[None, None]
        )
        queries = rotate(module, queries, cos[at], sin[at])
    if terms.softcap is None and terms.sinks is None:
        groups = heads // keys.shape[2]
        # Decoding reads a whole segment for one query: a copy a head would be most of its work.
        shares = groups > 1 and number == 1 and not torch.is_grad_enabled()
        if groups > 1 and not shares:
            keys, values = (x.repeat_interleave(groups, dim=2) for x in (keys, values))
        out = scaled_dot_product_attention(
            *(x.flatten(0, 1) for x in (queries, keys, values)),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=terms.dropout,
            scale=terms.scaling,
            enable_gqa=shares,
        )
    else:
        out = _softmax(*(x.flatten(0, 1) for x in (queries, keys, values)), mask, terms)
    return out.unflatten(0, (rows, number))


def _softmax(queries, keys, values, mask: Tensor | None, terms: _Terms) -> Tensor:
    """Attention with a softcap or sinks: queries [b, H, Q, D], keys [b, G, S, D]."""
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
    weights = drop(weights, terms.dropout).unflatten(1, grouped.shape[1:3])
    return (weights @ values.unsqueeze(2)).flatten(1, 2)


def _remember(module, local, queries, keys, values, infini: Pass, state) -> Tensor:
    """Mix memory into local attention [B, N, H, Q, Dv], and write the finished segments."""
    segments, system = infini.segments, module.gate.system
    if state is None:
        rows, _, heads, _, dim = keys.shape
        dtype = sigma(keys[:0], 1.0).dtype
        memory = keys.new_zeros(rows, heads, dim, values.shape[-1], dtype=dtype)
        norm = keys.new_zeros(rows, heads, dim, dtype=dtype)
    else:
        memory, norm = state.memory, state.norm
    if segments.number > 1 or segments.any_finished:
        sigma_k = sigma(keys, system.sigma_scale) * segments.filled[:, :, None, :, None]
        memories, norms = write(sigma_k, values, memory, norm, system.update)
        if state is not None:
            rows = torch.arange(len(keys), device=keys.device)
            state.memory = memories.detach()[rows, segments.finished]
            state.norm = norms.detach()[rows, segments.finished]
        memories, norms = memories[:, :-1], norms[:, :-1]
    else:
        memories, norms = memory.unsqueeze(1), norm.unsqueeze(1)

    grouped = sigma(queries, system.sigma_scale).unflatten(2, (keys.shape[2], -1))
    remembered = read(grouped.flatten(3, 4), memories, norms)
    remembered = remembered.unflatten(3, grouped.shape[3:5]).flatten(2, 3).to(local.dtype)
    gate = module.gate().to(local.dtype)[:, None, None]
    if not system.gate_empty_memory:
        gate = gate * segments.remembers[:, :, None, None, None]
    return gate * remembered + (1 - gate) * local


AttentionInterface.register(NAME, infini_attention)
AttentionMaskInterface.register(NAME, _mask)
