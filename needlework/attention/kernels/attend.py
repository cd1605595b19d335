"""Exact attention over the chosen blocks: which kernel computes it, and the compiled one.

Long prefills run in flex_attention, compiled by torch.compile: each row of blocks visits the blocks
it keeps, nothing is copied. All else is gathered (gather.py). Both give the same numbers.
"""

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from needlework.attention.blocks import Blocks, causal_pairs, window_pairs
from needlework.attention.kernels.gather import Terms, gather, gather_token

COMPILED_FROM = 2**29
"""Scores of dense attention, heads * queries * keys, from which compiling is worth its seconds."""
# Kinds of call (dtype, head dimensions, heads, block size, batch of one or more) in one process.
KINDS = 64
# flex_attention has no smaller tiles.
SMALLEST = 16


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chosen: Tensor,
    blocks: Blocks,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact attention of every head over the chosen blocks, with the mask of each token.

    query [batch, heads, new tokens, d]; key, value [batch, kv heads, all tokens, d]; chosen as
    `choose` returns it: alike for all heads [batch, rows, k], or [batch, choices, rows, k] with a
    choice for each kv head (and the heads that read it) or for each head. Softcap as in Gemma 2,
    sinks [heads] as in GPT-OSS. Returns the output [batch, heads, new tokens, d_v] and the number
    of pairs of real tokens attended to, a mean over choices (0-dim float64).

    Raises:
        ValueError: another number of choices.
    """
    chosen = chosen[:, None] if chosen.ndim == 3 else chosen
    if chosen.shape[1] not in (1, key.shape[1], query.shape[1]):
        raise ValueError(
            f"chosen: blocks for {chosen.shape[1]} heads; give one choice for all, or one for each "
            f"of the {key.shape[1]} kv heads or {query.shape[1]} heads"
        )
    terms = Terms(query.shape[-1] ** -0.5 if scaling is None else scaling, dropout, softcap, sinks)
    scores = len(query) * query.shape[1] * query.shape[2] * key.shape[2]
    if query.shape[2] == 1:
        kernel = gather_token
    elif scores >= COMPILED_FROM and can_compile(query, key, value, blocks, terms):
        kernel = compiled
    else:
        kernel = gather
    return kernel(query, key, value, chosen, blocks, terms)


def can_compile(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, terms: Terms) -> bool:
    """Whether `compiled` serves this call: causal, be it in a window, no gradient, no dropout."""
    tensors = (query, key, value, *([] if terms.sinks is None else [terms.sinks]))
    return (
        (blocks.mask.is_causal or blocks.mask.window is not None)
        and blocks.size % SMALLEST == 0
        and min(query.shape[-1], value.shape[-1]) >= SMALLEST
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and terms.dropout == 0
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and has_compiler(query.device.type)
    )


@cache
def has_compiler(device: str) -> bool:
    """Whether torch.compile finds what it needs: Triton, or a C++ compiler, Python's headers and
    a processor with AVX2."""
    if device == "cuda":
        return find_spec("triton") is not None
    if device != "cpu" or not torch.cpu.get_capabilities().get("avx2", False):
        return False
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.exists()


def compiled(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: Terms
) -> tuple[Tensor, Tensor]:
    """`attend` by compiled flex_attention.

    Raises:
        RuntimeError: the call was not compiled, and would have made all n x n scores.
    """
    dtype, size, count = query.dtype, blocks.size, blocks.count
    if query.device.type == "cpu" and not _has_products(dtype):
        query, key, value = query.float(), key.float(), value.float()
    sinks = terms.sinks
    # A sink is one more block: its first key scores the sink, no other is seen, values are 0.
    extra = 0 if sinks is None else size
    queries, keys, values = (
        shaped.flatten(2, 3)
        for shaped in (blocks.of_queries(query), blocks.of_keys(key), blocks.of_keys(value))
    )
    if sinks is not None:
        keys, values = (functional.pad(x, (0, 0, 0, extra)) for x in (keys, values))
        sinks, count = sinks.float(), count + 1
    # The own block needs the mask of tokens; those before it are attended to in full, but for those
    # that a window cuts.
    earlier = chosen[..., 1:].sort(dim=-1, descending=True).values
    if chosen.shape[1] > 1:
        earlier = earlier.repeat_interleave(query.shape[1] // chosen.shape[1], 1)
    own = blocks.number[:, None, :, None].expand(*earlier.shape[:3], 1)
    masked, full, window = [own], earlier, blocks.mask.window
    if sinks is not None:
        masked.append(torch.full_like(own, blocks.count))
    if window is not None:
        is_whole = (own - earlier + 1) * size <= window[1]
        masked.append(earlier.masked_fill(is_whole, -1).sort(dim=-1, descending=True).values)
        full = earlier.masked_fill(~is_whole, -1).sort(dim=-1, descending=True).values
        window = torch.tensor(window, device=query.device)
    masked = torch.cat(masked, -1)
    out = _compiled()(
        queries,
        keys,
        values,
        (masked >= 0).sum(-1, dtype=torch.int32),
        # The width says how many blocks of keys there are.
        _padded(masked, count),
        (full >= 0).sum(-1, dtype=torch.int32),
        # Sizes of 0 and 1 would be compiled apart.
        _padded(full, max(2, full.shape[-1])),
        blocks.number[:, 0] * size,
        torch.tensor([blocks.count * size], device=query.device),
        window,
        size,
        terms.scaling,
        None if terms.softcap is None else torch.tensor([terms.softcap], device=query.device),
        sinks,
    )
    out = blocks.tokens(out.unflatten(2, (-1, size))).to(dtype)
    return out, causal_pairs(chosen, blocks) if window is None else window_pairs(blocks)


def _padded(numbers: Tensor, width: int) -> Tensor:
    """Block numbers [..., k], -1 for none, as [..., width] int32, 0 for none."""
    return functional.pad(numbers.clamp_min(0), (0, width - numbers.shape[-1])).int()


@cache
def _has_products(dtype: torch.dtype) -> bool:
    """Whether the CPU multiplies matrices of this dtype faster than those of float32."""
    needs = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}
    return dtype not in needs or torch.cpu.get_capabilities().get(needs[dtype], False)


@cache
def _compiled():
    return torch.compile(_flex, dynamic=True, fullgraph=True, recompile_limit=KINDS)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masked_blocks: Tensor,
    masked: Tensor,
    full_blocks: Tensor,
    full: Tensor,
    begin: Tensor,
    end: Tensor,
    window: Tensor | None,
    size: int,
    scaling: float,
    softcap: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """begin [batch], the first query's position among the keys; end [1], that of the sink; window
    [2], as LazyMask has it."""
    if not torch.compiler.is_compiling():
        raise RuntimeError(
            "attention: flex_attention was about to run without being compiled, which would make "
            "all n x n scores; allow torch.compile (TORCH_COMPILE_DISABLE, force_eager), or set "
            "needlework.attention.kernels.attend.COMPILED_FROM above heads * queries * keys"
        )

    def mask(batch, head, q, k):
        q = q + begin[batch]
        seen = k <= q
        if window is not None:
            seen = seen & ((k < window[0]) | (q - k < window[1]))
        return seen if sinks is None else seen | (k == end[0])

    def score(score, batch, head, q, k):
        if softcap is not None:
            score = softcap[0] * torch.tanh(score / softcap[0])
        return score if sinks is None else torch.where(k == end[0], sinks[head], score)

    tile = min(64, size & -size)
    return flex_attention(
        query,
        key,
        value,
        score_mod=None if softcap is None and sinks is None else score,
        block_mask=BlockMask.from_kv_blocks(
            masked_blocks,
            masked,
            full_blocks,
            full,
            BLOCK_SIZE=size,
            mask_mod=mask,
            compute_q_blocks=False,
        ),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True, "BLOCK_M": tile, "BLOCK_N": tile}
        if query.device.type == "cuda"
        else None,
    )
