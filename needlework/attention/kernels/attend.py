"""Exact attention over the chosen blocks: the choice of a kernel, and the compiled kernel.

Prefills on CPUs under a causal mask use torch's flash kernel (flash.py). Other long prefills can
use flex_attention with torch.compile: each row of blocks visits the blocks that it keeps, without
copies. Whether it is faster than gathering depends on the machine, so choice.py measures it.
Everything else uses the gathering kernel (gather.py). Results agree up to rounding.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from needlework.attention.blocks import Blocks, causal_pairs, window_pairs
from needlework.attention.kernels.choice import Kernels, Name, faster, fixed
from needlework.attention.kernels.flash import attend_flash, can_flash, has_fast_matmul
from needlework.attention.kernels.gather import SoftmaxTerms, gather, gather_token

COMPILE_THRESHOLD = 2**29
"""Scores of dense attention (batch * heads * queries * keys) from which compiling can pay off;
then the kernel that is faster on the machine is used (choice.py)."""
RECOMPILE_LIMIT = 64
"""Largest number of compiled variants in a process: dtype, head dimensions, heads, block size, and
batch of one or more."""
MIN_TILE = 16
"""Smallest tile of flex_attention."""


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

    Args:
        query: [batch, heads, new tokens, d].
        key: [batch, kv heads, all tokens, d].
        value: [batch, kv heads, all tokens, d_v].
        chosen: blocks, as `choose` returns them: [batch, rows, k], common to all heads, or [batch,
            choices, rows, k] with one choice per kv head (for all heads that read it) or per head.
        blocks: the blocks of this forward.
        scaling: factor of the scores; None: d^-0.5.
        dropout: dropout probability of the weights.
        softcap: bound of the scores (Gemma 2).
        sinks: [heads], see `SoftmaxTerms` (GPT-OSS).

    Returns:
        The output [batch, heads, new tokens, d_v], and the number of pairs of real tokens attended
        to, averaged over choices (0-dim float64).

    Raises:
        ValueError: the number of choices does not match the heads.
    """
    chosen = chosen[:, None] if chosen.ndim == 3 else chosen
    if chosen.shape[1] not in (1, key.shape[1], query.shape[1]):
        raise ValueError(
            f"chosen: has blocks for {chosen.shape[1]} heads; give one choice for all heads, or "
            f"one for each of the {key.shape[1]} kv heads or {query.shape[1]} heads"
        )
    terms = SoftmaxTerms(
        query.shape[-1] ** -0.5 if scaling is None else scaling, dropout, softcap, sinks
    )
    if query.shape[2] == 1:
        kernel = gather_token
    elif _is_compiled(query, key, value, chosen, blocks, terms):
        kernel = attend_compiled
    elif can_flash(query, key, value, chosen.shape[1], blocks, terms):
        kernel = attend_flash
    else:
        kernel = gather
    return kernel(query, key, value, chosen, blocks, terms)


def _is_compiled(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: SoftmaxTerms
) -> bool:
    """Whether the compiled kernel computes a prefill: the environment or a measurement decides."""
    scores = len(query) * query.shape[1] * query.shape[2] * key.shape[2]
    if scores < COMPILE_THRESHOLD or not can_compile(query, key, value, blocks, terms):
        return False
    if (name := fixed()) is not None:
        return name == "compiled"
    if can_flash(query, key, value, chosen.shape[1], blocks, terms):
        return False
    # A measurement holds for prefills of about as many tokens and blocks kept.
    kept = blocks.count // chosen.shape[-1]
    case = (
        str(query.dtype),
        *(query.shape[1], key.shape[1], query.shape[-1], value.shape[-1]),
        *(blocks.size, chosen.shape[1], key.shape[2].bit_length(), kept.bit_length()),
        *(blocks.mask.window is not None, terms.softcap is not None, terms.sinks is not None),
    )
    if (case, query.device) not in _FASTER:
        arguments = (query, key, value, chosen, blocks, terms)
        kernels: Kernels = {
            "gather": lambda: gather(*arguments),
            "compiled": lambda: attend_compiled(*arguments),
        }
        _FASTER[case, query.device] = faster(case, query.device, kernels)
    return _FASTER[case, query.device] == "compiled"


_FASTER: dict[tuple[tuple, torch.device], Name] = {}


def can_compile(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, terms: SoftmaxTerms
) -> bool:
    """Whether `attend_compiled` supports this call: a causal mask, with or without a window, no
    gradients and no dropout."""
    tensors = (query, key, value, *([] if terms.sinks is None else [terms.sinks]))
    return (
        (blocks.mask.is_causal or blocks.mask.window is not None)
        and blocks.size % MIN_TILE == 0
        and min(query.shape[-1], value.shape[-1]) >= MIN_TILE
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and terms.dropout == 0
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and has_compiler(query.device.type)
    )


@cache
def has_compiler(device: str) -> bool:
    """Whether torch.compile works: with Triton, or on CPUs with a C++ compiler, Python's headers
    and AVX2."""
    if device == "cuda":
        return find_spec("triton") is not None
    if device != "cpu" or not torch.cpu.get_capabilities().get("avx2", False):
        return False
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.exists()


def attend_compiled(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, blocks: Blocks, terms: SoftmaxTerms
) -> tuple[Tensor, Tensor]:
    """`attend` with compiled flex_attention.

    Raises:
        RuntimeError: torch.compile is disabled; uncompiled, flex_attention computes n x n scores.
    """
    dtype, size, count = query.dtype, blocks.size, blocks.count
    if query.device.type == "cpu" and not has_fast_matmul(dtype):
        query, key, value = query.float(), key.float(), value.float()
    sinks = terms.sinks
    # A sink is an extra block: its first key gets the sink's score, the others are masked, and its
    # values are 0.
    extra = 0 if sinks is None else size
    queries, keys, values = (
        x.flatten(2, 3)
        for x in (blocks.of_queries(query), blocks.of_keys(key), blocks.of_keys(value))
    )
    if sinks is not None:
        keys, values = (functional.pad(x, (0, 0, 0, extra)) for x in (keys, values))
        sinks, count = sinks.float(), count + 1
    # A row's own block needs a mask of tokens. Earlier blocks need none, except where a window cuts
    # them.
    earlier = chosen[..., 1:].sort(dim=-1, descending=True).values
    if chosen.shape[1] > 1:
        earlier = earlier.repeat_interleave(query.shape[1] // chosen.shape[1], 1)
    own = blocks.number[:, None, :, None].expand(*earlier.shape[:3], 1)
    masked_parts, full, window = [own], earlier, None
    if sinks is not None:
        masked_parts.append(torch.full_like(own, blocks.count))
    if blocks.mask.window is not None:
        is_whole = (own - earlier + 1) * size <= blocks.mask.window[1]
        masked_parts.append(earlier.masked_fill(is_whole, -1).sort(dim=-1, descending=True).values)
        full = earlier.masked_fill(~is_whole, -1).sort(dim=-1, descending=True).values
        window = blocks.constant(*blocks.mask.window)
    masked = torch.cat(masked_parts, -1)
    out = _compiled()(
        queries,
        keys,
        values,
        (masked >= 0).sum(-1, dtype=torch.int32),
        # BlockMask takes the number of key blocks from this width.
        _padded(masked, count),
        (full >= 0).sum(-1, dtype=torch.int32),
        # torch.compile specializes sizes 0 and 1.
        _padded(full, max(2, full.shape[-1])),
        blocks.number[:, 0] * size,
        blocks.constant(blocks.count * size),
        window,
        size,
        terms.scaling,
        None if terms.softcap is None else torch.tensor([terms.softcap], device=query.device),
        sinks,
    )
    out = blocks.tokens(out.unflatten(2, (-1, size))).to(dtype)
    return out, causal_pairs(chosen, blocks) if window is None else window_pairs(blocks)


def _padded(numbers: Tensor, width: int) -> Tensor:
    """Pad block numbers [..., k], -1 for none, to [..., width] int32, 0 for none."""
    return functional.pad(numbers.clamp_min(0), (0, width - numbers.shape[-1])).int()


@cache
def _compiled() -> Callable[..., Tensor]:
    # torch's overloads lack recompile_limit.
    return torch.compile(  # type: ignore[call-overload]
        _flex, dynamic=True, fullgraph=True, recompile_limit=RECOMPILE_LIMIT
    )


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
    """flex_attention over the given blocks.

    `masked` blocks need the mask of tokens, `full` ones do not; begin [batch] is the first query's
    position among the keys, end [1] that of the sink, window [2] that of LazyMask.
    """
    if not torch.compiler.is_compiling():
        raise RuntimeError(
            "attention: torch.compile is disabled, and flex_attention without it would compute "
            "all n x n scores; enable it (TORCH_COMPILE_DISABLE, force_eager), or set needlework."
            "attention.kernels.attend.COMPILE_THRESHOLD above batch * heads * queries * keys"
        )

    def mask(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = q + begin[batch]
        allowed = k <= q
        if window is not None:
            allowed = allowed & ((k < window[0]) | (q - k < window[1]))
        return allowed if sinks is None else allowed | (k == end[0])

    def score(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
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
