"""Block-sparse attention beside dense: the operator by itself, and the whole shipped model.

The operator is what one sparse layer of SketchWalk does with its queries, keys and values: choose
blocks, and attend to them. Dense is torch's scaled_dot_product_attention; on CUDA the faster of its
flash and cuDNN kernels.
"""

import time
from collections.abc import Callable
from math import log
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from needlework import Random, SketchWalk, apply
from needlework.attention.apply import Forward
from needlework.attention.blocks import Blocks, choose
from needlework.attention.kernels import attend
from needlework.attention.masks import LazyMask
from needlework.attention.sketchwalk import Selector
from needlework.attention.state import State
from needlework.models.checkpoint import open_model

MODEL = Path(__file__).resolve().parent.parent / "resources" / "needlework-tiny"
SETTINGS = {"density": 0.25, "dense_layers": 1}
ROUNDS = 4
"""Of which the first, that compiles and warms up, does not count."""
# As many blocks at every length: the cost should then grow as the length does.
FIXED = 16


def attention_table() -> str:
    """Both tables, in Markdown."""
    return f"{operator_table()}\n{model_table()}"


def operator_table(lengths: tuple[int, ...] | None = None) -> str:
    """The operator: prefill at several lengths and kept shares, growth with length, decode."""
    on_gpu = torch.cuda.is_available()
    if lengths is None:
        lengths = (8192, 32768, 131072) if on_gpu else (8192, 16384, 32768)
    heads, kv_heads, d = (32, 8, 128) if on_gpu else (8, 8, 64)
    systems = {
        "1/16 of all blocks": lambda n: SketchWalk(top_k_blocks=n // 64 // 16),
        "1/8 of all blocks": lambda n: SketchWalk(top_k_blocks=n // 64 // 8),
        f"{FIXED} blocks": lambda n: SketchWalk(top_k_blocks=FIXED),
    }
    if on_gpu:
        systems = {
            f"{share:.0%} of the causal pairs": lambda n, share=share: SketchWalk(density=share)
            for share in (0.2, 0.1)
        } | systems
    lines = [
        "# Attention operator: SketchWalk beside dense",
        "",
        f"One layer, batch 1, {heads} heads over {kv_heads} of keys, d {d}, blocks of 64 tokens,"
        f" {'CUDA' if on_gpu else 'one thread'}. Sparse time",
        "includes the choice of blocks, whose share is given. Median of three (decode: 15 tokens),",
        "after one warm-up; dense and sparse by turns.",
        "",
        "| stage | tokens | dtype | kept | dense ms | sparse ms | of it choosing | times faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    growth = []
    for dtype in (torch.float32, torch.bfloat16):
        if on_gpu and dtype == torch.float32:
            continue
        sparse_at, dense_at = {}, {}
        for n in lengths:
            shape = {"query": heads, "key": kv_heads, "value": kv_heads}
            tensors = [_normal((1, h, n, d), dtype, seed) for seed, h in enumerate(shape.values())]
            for stage, measure in (("prefill", _prefill_seconds), ("decode", _decode_seconds)):
                for kept, system in systems.items():
                    dense, choosing, attending = measure(*tensors, system(n))
                    sparse = choosing + attending
                    lines.append(
                        f"| {stage} | {n:,} | {str(dtype)[6:]} | {kept} | {1e3 * dense:.2f} | "
                        f"{1e3 * sparse:.2f} | {choosing / sparse:.0%} | {dense / sparse:.1f} |"
                    )
                    if stage == "prefill" and kept == f"{FIXED} blocks":
                        sparse_at[n], dense_at[n] = sparse, dense
        first, last = min(lengths), max(lengths)
        if first < last:
            exponents = [log(at[last] / at[first], last / first) for at in (sparse_at, dense_at)]
            growth.append(
                f"{str(dtype)[6:]}: prefill time grows as n^{exponents[0]:.2f} with {FIXED} blocks"
                f" kept, as n^{exponents[1]:.2f} dense ({first:,} to {last:,} tokens)."
            )
    return "\n".join([*lines, "", *growth, ""])


def _normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


@torch.inference_mode()
def _prefill_seconds(query: Tensor, key: Tensor, value: Tensor, system: SketchWalk) -> list[float]:
    """Medians of dense attention, choosing blocks, and attending to them."""

    def sparse() -> tuple[float, float]:
        operator = _Operator(system)
        return operator.seconds(query, key, value)

    rounds = [(_dense_seconds(query, key, value, is_causal=True), *sparse()) for _ in range(ROUNDS)]
    return [median(times) for times in zip(*rounds[1:], strict=True)]


@torch.inference_mode()
def _decode_seconds(query: Tensor, key: Tensor, value: Tensor, system: SketchWalk) -> list[float]:
    """As _prefill_seconds, for each of the last tokens upon a cache of those before it."""
    total, steps = key.shape[2], 16
    operator, rounds = _Operator(system), []
    before = total - steps
    operator.choose(query[:, :, :before], key[:, :, :before])
    for end in range(before + 1, total + 1):
        token, *cache = query[:, :, end - 1 : end], key[:, :, :end], value[:, :, :end]
        dense = _dense_seconds(token, *cache, is_causal=False)
        rounds.append((dense, *operator.seconds(token, *cache)))
    return [median(times) for times in zip(*rounds[1:], strict=True)]


class _Operator:
    """Two sparse layers in a row, of which the second is timed: its walk continues the first's."""

    def __init__(self, system: SketchWalk):
        self.system, self.selector = system, Selector(system)
        self.state = State(system.block_size)

    def choose(self, query: Tensor, key: Tensor) -> tuple[Tensor, Blocks, float]:
        """The choice of the second layer, the blocks chosen from, and its seconds."""
        total = key.shape[2]
        forward = Forward(None, self.state)
        mask = LazyMask(len(query), query.shape[2], total, total - query.shape[2])
        forward.blocks = Blocks(mask, self.system, query.device)
        self.selector.scores(0, query, key, forward)
        chosen, seconds = _timed(
            lambda: choose(self.selector.scores(1, query, key, forward), forward.blocks)
        )
        return chosen, forward.blocks, seconds

    def seconds(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[float, float]:
        chosen, blocks, choosing = self.choose(query, key)
        _, attending = _timed(lambda: attend(query, key, value, chosen, blocks))
        return choosing, attending


def _dense_seconds(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> float:
    def dense() -> Tensor:
        return scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, enable_gqa=query.shape[1] != key.shape[1]
        )

    if not query.is_cuda:
        return _timed(dense)[1]
    seconds = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            seconds.append(_timed(dense)[1])
    return min(seconds)


def _timed(function: Callable) -> tuple:
    """What the function returns, and its seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def model_table() -> str:
    """Prefill and decode of each system over stock attention (sdpa), same model, same prompts."""
    model, tokenizer = open_model(MODEL)
    systems = {
        "stock (sdpa)": None,
        "sketchwalk, block 16": SketchWalk(heads="sum", block_size=16, **SETTINGS),
        "sketchwalk, block 4": SketchWalk(heads="sum", block_size=4, **SETTINGS),
        "random, block 16": Random(block_size=16, **SETTINGS),
    }
    lines = [
        "# Attention systems beside stock attention: the whole model",
        "",
        "Whole model, batch 1, one thread; heads: sum, density 0.25, first layer dense. Ratio:",
        "time over that of stock attention in the same round, median of three; below 1 is faster.",
        "",
        "| system | tokens | prefill ms | prefill ratio | decode ms a token | decode ratio |",
        "|---|---|---|---|---|---|",
    ]
    for length in (1024, 4096, 16384):
        ids = torch.randint(3, len(tokenizer), (1, length), generator=torch.manual_seed(0))
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
        for _ in range(4):
            for name, system in systems.items():
                rounds[name].append(_prefill_and_decode_seconds(model, ids, system))
        stock = rounds["stock (sdpa)"][1:]
        for name, times in rounds.items():
            prefill, decode = (median(t[i] for t in times[1:]) for i in (0, 1))
            ratios = [
                median(own[i] / theirs[i] for own, theirs in zip(times[1:], stock, strict=True))
                for i in (0, 1)
            ]
            lines.append(
                f"| {name} | {length:,} | {1e3 * prefill:.1f} | {ratios[0]:.2f} | "
                f"{1e3 * decode:.2f} | {ratios[1]:.2f} |"
            )
    return "\n".join(lines) + "\n"


@torch.inference_mode()
def _prefill_and_decode_seconds(model, ids, system, steps: int = 8) -> tuple[float, float]:
    handle = apply(model, system) if system is not None else None
    try:
        started = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - started
        cache, token = out.past_key_values, ids[:, -1:]
        started = time.perf_counter()
        for _ in range(steps):
            cache = model(token, past_key_values=cache, use_cache=True).past_key_values
        return prefill, (time.perf_counter() - started) / steps
    finally:
        if handle is not None:
            handle.remove()
