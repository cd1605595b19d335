"""Benchmark one sparse attention layer against dense attention on the same queries, keys and
values.

The sparse layer is SketchWalk's: choose blocks, then attend to them. Dense is the fastest kernel of
torch's scaled_dot_product_attention on the device.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import log
from statistics import median

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import timed, verdict
from needlework import SketchWalk
from needlework.attention.base import Forward
from needlework.attention.blocks import Blocks, choose
from needlework.attention.cache_state import MethodState
from needlework.attention.kernels.attend import attend
from needlework.attention.masks import LazyMask
from needlework.attention.methods.sketchwalk import Method

ROUNDS = 4
"""Rounds; the first compiles and warms up, and does not count."""
DECODED = 33
"""Last tokens, decoded one per round; the first does not count."""
# The same number of blocks at every length, so the cost should grow linearly.
FIXED = "16 blocks"
MAX_EXPONENT = 1.2

System = Callable[[int], SketchWalk]
"""Tokens -> system."""


def _share(share: int, **form) -> System:
    return lambda n: SketchWalk(top_k_blocks=n // 64 // share, **form)


def _density(density: float) -> System:
    return lambda n: SketchWalk(density=density)


@dataclass(frozen=True)
class Case:
    """Shape of a layer, what to measure with it, and targets."""

    heads: int
    kv_heads: int
    d: int
    lengths: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    prefill: dict[str, System]
    decode: dict[str, System]
    min_speedup: dict[tuple, float]
    """(stage, tokens, dtype, kept) -> minimum speed-up over dense."""
    max_choosing_share: dict[tuple, float] = field(default_factory=dict)
    """(stage, tokens, dtype, kept) -> maximum share of the time spent on choosing blocks."""


_SHARES = {
    "1/16 of all blocks": _share(16),
    "1/16, heads: sum": _share(16, heads="sum"),
    "1/8 of all blocks": _share(8),
    FIXED: lambda n: SketchWalk(top_k_blocks=16),
}
CPU = Case(
    heads=8,
    kv_heads=8,
    d=64,
    lengths=(8192, 16384, 32768),
    dtypes=(torch.float32, torch.bfloat16),
    prefill=_SHARES,
    decode=_SHARES,
    min_speedup={
        ("prefill", 16384, torch.float32, "1/16 of all blocks"): 5.0,
        ("prefill", 16384, torch.bfloat16, "1/16 of all blocks"): 5.0,
        ("decode", 32768, torch.float32, "1/16 of all blocks"): 8.0,
        ("decode", 32768, torch.bfloat16, "1/16 of all blocks"): 8.0,
    },
    max_choosing_share={
        ("prefill", 16384, dtype, "1/16 of all blocks"): 0.10
        for dtype in (torch.float32, torch.bfloat16)
    },
)
# The shape of a layer of Llama 3.1 8B.
CUDA = Case(
    heads=32,
    kv_heads=8,
    d=128,
    lengths=(8192, 16384, 32768, 65536, 131072),
    dtypes=(torch.bfloat16,),
    prefill={"density 0.2": _density(0.2), "density 0.1": _density(0.1), FIXED: _SHARES[FIXED]},
    decode={"density 0.1": _density(0.1), "density 0.05": _density(0.05)},
    min_speedup={
        ("prefill", 131072, torch.bfloat16, "density 0.2"): 4.2,
        ("prefill", 131072, torch.bfloat16, "density 0.1"): 7.0,
        ("decode", 131072, torch.bfloat16, "density 0.05"): 5.0,
    },
)


def operator_table(case: Case | None = None, device: str | None = None) -> str:
    """Prefill and decode by length and kept blocks, and growth with length."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    case = case or (CUDA if device == "cuda" else CPU)
    lines = [
        "# Attention operator: SketchWalk and dense",
        "",
        f"One layer, batch 1, {case.heads} heads over {case.kv_heads} of keys, d {case.d},"
        f" blocks of 64 tokens, {'CUDA' if device == 'cuda' else 'one thread'}.",
        f"Median of {ROUNDS - 1} rounds (decode: {DECODED - 1} tokens) after a warm-up; dense and "
        f"all"
        " sparse variants",
        "alternate within a round. Sparse time includes choosing blocks (share given). Paper "
        "variant"
        " (mean over",
        "heads) unless `heads: sum` is stated. Pairs: attended (query, key) pairs over causal "
        "pairs."
        " Dense: the",
        "fastest kernel of scaled_dot_product_attention, named in `kernel`.",
        "",
        "| stage | tokens | dtype | kept | pairs | dense ms | kernel | sparse ms | choosing | "
        "speed-up | target |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    growth = []
    for dtype in case.dtypes:
        fixed = {}
        for n in case.lengths:
            heads = (case.heads, case.kv_heads, case.kv_heads)
            tensors = [_normal((1, h, n, case.d), dtype, device, i) for i, h in enumerate(heads)]
            for stage in ("prefill", "decode"):
                results = _measure(stage, *tensors, getattr(case, stage))
                for kept, row in results.items():
                    lines.append(_line(stage, n, dtype, kept, row, case))
                    print(lines[-1], file=sys.stderr, flush=True)
                if stage == "prefill":
                    fixed[n] = results[FIXED]
        growth.append(_growth(dtype, fixed))
    return "\n".join([*lines, "", *growth, ""])


def _normal(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


@dataclass(frozen=True)
class _Row:
    """Median seconds; `ratio` is the median of the ratios of each round."""

    dense: float
    backend: str
    choosing: float
    sparse: float
    ratio: float
    density: float


def _line(stage: str, n: int, dtype: torch.dtype, kept: str, row: _Row, case: Case) -> str:
    at, share = (stage, n, dtype, kept), row.choosing / row.sparse
    marks = []
    if at in case.min_speedup:
        marks.append(verdict(f">= {case.min_speedup[at]:g}", row.ratio >= case.min_speedup[at]))
    if at in case.max_choosing_share:
        limit = case.max_choosing_share[at]
        marks.append(verdict(f"choosing <= {limit:.0%}", share <= limit))
    return (
        f"| {stage} | {n:,} | {str(dtype)[6:]} | {kept} | {row.density:.1%} | "
        f"{1e3 * row.dense:.2f} | {row.backend} | {1e3 * row.sparse:.2f} | {share:.0%} | "
        f"{row.ratio:.1f} | {'; '.join(marks)} |"
    )


def _growth(dtype: torch.dtype, fixed: dict[int, _Row]) -> str:
    first, last = min(fixed), max(fixed)
    sparse, dense = (
        log(getattr(fixed[last], name) / getattr(fixed[first], name), last / first)
        for name in ("sparse", "dense")
    )
    return (
        f"{str(dtype)[6:]}: prefill time grows as n^{sparse:.2f} with {FIXED} kept "
        f"({verdict(f'< {MAX_EXPONENT}', sparse < MAX_EXPONENT)}), as n^{dense:.2f} dense "
        f"({first:,} to {last:,} tokens)."
    )


@torch.inference_mode()
def _measure(
    stage: str, query: Tensor, key: Tensor, value: Tensor, systems: dict[str, System]
) -> dict[str, _Row]:
    """Measure all systems and dense attention, alternating in each round."""
    n = key.shape[2]
    systems = {kept: system(n) for kept, system in systems.items()}
    rounds = _prefills if stage == "prefill" else _decodes
    dense = {name: [] for name in _backends(query, key, value, is_causal=stage == "prefill")}
    sparse = {kept: [] for kept in systems}
    pairs = dict.fromkeys(systems, 0)
    causal = n * (n + 1) / 2 if stage == "prefill" else n
    for q, k, v, layers in rounds(query, key, value, systems):
        for name, seconds in dense.items():
            seconds.append(_dense_seconds(q, k, v, name))
        for kept, layer in layers.items():
            *seconds, pairs[kept] = layer.seconds(q, k, v)
            sparse[kept].append(seconds)
    backend = min(dense, key=lambda name: median(dense[name][1:]))
    dense_seconds, results = dense[backend][1:], {}
    for kept, seconds in sparse.items():
        own = [choosing + attending for choosing, attending in seconds[1:]]
        results[kept] = _Row(
            dense=median(dense_seconds),
            backend=backend,
            choosing=median(choosing for choosing, _ in seconds[1:]),
            sparse=median(own),
            ratio=median(d / s for d, s in zip(dense_seconds, own, strict=True)),
            density=float(pairs[kept]) / causal,
        )
    return results


_Rounds = Iterator[tuple[Tensor, Tensor, Tensor, dict[str, "_Layer"]]]


def _prefills(query: Tensor, key: Tensor, value: Tensor, systems: dict[str, SketchWalk]) -> _Rounds:
    for _ in range(ROUNDS):
        yield query, key, value, {kept: _Layer(system) for kept, system in systems.items()}


def _decodes(query: Tensor, key: Tensor, value: Tensor, systems: dict[str, SketchWalk]) -> _Rounds:
    """Each of the last tokens with a cache of those before it."""
    layers = {kept: _Layer(system) for kept, system in systems.items()}
    n = key.shape[2]
    for layer in layers.values():
        layer.choose(query[:, :, : n - DECODED], key[:, :, : n - DECODED])
    for end in range(n - DECODED + 1, n + 1):
        yield query[:, :, end - 1 : end], key[:, :, :end], value[:, :, :end], layers


class _Layer:
    """Two consecutive sparse layers; the second, which continues the first's walk, is timed."""

    def __init__(self, system: SketchWalk):
        self.system, self.selector = system, Method(system)
        self.state = MethodState(system.block_size)

    def choose(self, query: Tensor, key: Tensor) -> tuple[Tensor, Blocks, float]:
        """Blocks that the second layer keeps, all blocks, and the seconds to choose."""
        total = key.shape[2]
        forward = Forward(self.state)
        mask = LazyMask(len(query), query.shape[2], total, total - query.shape[2])
        forward.blocks = Blocks(mask, self.system, query.device)
        self.selector.scores(0, query, key, forward)
        chosen, seconds = timed(
            lambda: choose(self.selector.scores(1, query, key, forward), forward.blocks),
            query.device,
        )
        return chosen, forward.blocks, seconds

    def seconds(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[float, float, Tensor]:
        """Seconds to choose, seconds to attend, and the number of attended pairs."""
        chosen, blocks, choosing = self.choose(query, key)
        (_, pairs), attending = timed(
            lambda: attend(query, key, value, chosen, blocks), query.device
        )
        return choosing, attending, pairs


_KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def _backends(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> list[str]:
    """Names of the dense kernels that support such tensors on their device."""
    if not query.is_cuda:
        return ["sdpa"]
    query = query if is_causal else query[:, :, -1:]
    supported = []
    for name in _KERNELS:
        try:
            _dense_seconds(query, key, value, name)
            supported.append(name)
        except RuntimeError as error:
            print(f"{name} does not support {tuple(query.shape)}: {error}", file=sys.stderr)
    if not supported:
        sys.exit(f"benchmarks: none of {', '.join(_KERNELS)} supports {tuple(query.shape)}")
    return supported


def _dense_seconds(query: Tensor, key: Tensor, value: Tensor, backend: str) -> float:
    def dense() -> Tensor:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=query.shape[2] > 1,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    if backend == "sdpa":
        return timed(dense, query.device)[1]
    with sdpa_kernel(_KERNELS[backend]):
        return timed(dense, query.device)[1]
