"""Benchmark the embedded model with each attention system: prefill, decode, memory and growth.

Weights hardly affect time, so the gates of seer and infini are untrained. The model supports 32,768
tokens; beyond that only its time is meaningful.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import log
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.timing import timed, verdict
from needlework import Infini, Oracle, Random, Seer, SketchWalk, Window, XAttention, apply
from needlework.attention.seer.gates import Gates
from needlework.config.attention.base import Attention
from needlework.config.opening import ModelSpec
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "resources" / "needlework-tiny"
DENSE = "dense (sdpa)"
KEPT_TOKENS = 1024
_ROUNDS = 4
"""Rounds; the first compiles and warms up, and does not count."""
_DECODED = 8
MAX_EXPONENT = 1.1


def _blocks(size: int) -> dict[str, int]:
    return {"block_size": size, "top_k_blocks": KEPT_TOKENS // size, "dense_layers": 0}


SYSTEMS: dict[str, Attention | None] = {
    DENSE: None,
    "sketchwalk, block 64": SketchWalk(heads="sum", **_blocks(64)),
    "sketchwalk, block 16": SketchWalk(heads="sum", walk_memory="sparse", **_blocks(16)),
    "seer, block 64": Seer(gates="fresh", **_blocks(64)),
    "xattention, block 64": XAttention(**_blocks(64)),
    "random, block 64": Random(**_blocks(64)),
    "window": Window(recent_tokens=KEPT_TOKENS - 4, dense_layers=0),
    "infini, segment 1,024": Infini(),
}
ORACLE = "oracle, block 64"


@contextmanager
def under(model: PreTrainedModel, system: Attention | None) -> Iterator[PreTrainedModel]:
    """The model with a system applied; None: its own attention."""
    if system is None:
        yield model
    elif system.converts_model:
        yield convert(model, system).eval()
    elif isinstance(system, Seer):
        with TemporaryDirectory() as gates:
            Gates.new(model, block_size=system.block_size).save(gates)
            with apply(model, system.model_copy(update={"gates": gates})):
                yield model
    else:
        with apply(model, system):
            yield model


def opened() -> PreTrainedModel:
    """The embedded model."""
    return open_model(ModelSpec(path=MODEL))[0]


def prompt(model: PreTrainedModel, tokens: int) -> Tensor:
    """Random ids [1, tokens]."""
    generator = torch.manual_seed(0)
    return torch.randint(3, model.config.vocab_size, (1, tokens), generator=generator).to(
        model.device
    )


@torch.inference_mode()
def prefill_seconds(model: PreTrainedModel, ids: Tensor) -> tuple[object, float]:
    """Cache and seconds of one prefill."""
    out, seconds = timed(lambda: model(ids, use_cache=True, logits_to_keep=1), model.device)
    return out.past_key_values, seconds


@torch.inference_mode()
def _decode_seconds(model: PreTrainedModel, ids: Tensor, cache: object) -> float:
    """Mean seconds per decoded token."""

    def decode() -> None:
        for _ in range(_DECODED):
            model(ids[:, -1:], past_key_values=cache, use_cache=True)

    return timed(decode, model.device)[1] / _DECODED


def model_table(lengths: tuple[int, ...] = (4096, 32768)) -> str:
    """Prefill and decode of each system relative to stock attention, in alternating rounds."""
    model = opened()
    lines = [
        "# Attention systems and stock attention: whole model",
        "",
        f"The embedded model ({model.config.num_hidden_layers} layers, "
        f"{model.config.num_attention_heads} heads, d {model.config.head_dim}), batch 1, one"
        f" thread; every layer sparse, {KEPT_TOKENS:,} tokens kept per row",
        "of blocks, sketchwalk with `heads: sum`, untrained gates. Ratio: time relative to stock"
        " attention in the same",
        f"round, median of {_ROUNDS - 1} after a warm-up; below 1 is faster. `oracle` computes all"
        " probabilities to choose",
        "from, so it saves nothing and is only measured at the first length.",
        "",
        "| system | tokens | prefill ms | prefill ratio | decode ms per token | decode ratio |",
        "|---|---|---|---|---|---|",
    ]
    for length in lengths:
        ids = prompt(model, length)
        systems = SYSTEMS | ({ORACLE: Oracle(**_blocks(64))} if length == lengths[0] else {})
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
        for _ in range(_ROUNDS):
            for name, system in systems.items():
                with under(model, system) as own:
                    cache, prefill = prefill_seconds(own, ids)
                    rounds[name].append((prefill, _decode_seconds(own, ids, cache)))
        for name, times in rounds.items():
            prefill, decode = (median(t[i] for t in times[1:]) for i in (0, 1))
            ratios = [
                median(own[i] / dense[i] for own, dense in _pairs(times, rounds[DENSE]))
                for i in (0, 1)
            ]
            lines.append(
                f"| {name} | {length:,} | {1e3 * prefill:.1f} | {ratios[0]:.2f} | "
                f"{1e3 * decode:.2f} | {ratios[1]:.2f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def _pairs(times: list, dense: list) -> Iterator[tuple]:
    return zip(times[1:], dense[1:], strict=True)


def long_table(lengths: tuple[int, ...] = (32768, 131072), names: Iterable[str] = SYSTEMS) -> str:
    """Prefill of each system in a separate process, to measure its peak memory."""
    lines = [
        "# Prefill of long prompts: whole model, with peak memory",
        "",
        "As above; each system in a separate process, one prefill per length after a warm-up"
        f" at {lengths[0] // 2:,}",
        "tokens. Memory: peak of the process (on CUDA: of its tensors) above what it held before,"
        " including the keys and",
        "values of all layers. The n x n scores of one head in float32 would take "
        + ", ".join(f"{4 * n * n / 1e6:,.0f} MB at {n:,}" for n in lengths)
        + ".",
        "",
        "| system | tokens | prefill s | speed-up | us per token | extra peak MB |",
        "|---|---|---|---|---|---|",
    ]
    dense: dict[int, float] = {}
    for name in names:
        for tokens, seconds, peak in _in_own_process(name, lengths):
            if name == DENSE:
                dense[tokens] = seconds
            lines.append(
                f"| {name} | {tokens:,} | {seconds:.2f} | {dense[tokens] / seconds:.1f} | "
                f"{1e6 * seconds / tokens:.0f} | {peak / 1e6:,.0f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def _in_own_process(name: str, lengths: tuple[int, ...]) -> Iterator[tuple[int, float, int]]:
    """Tokens, seconds and peak bytes of each length."""
    command = [sys.executable, "-m", "benchmarks.prefill_process", name, *map(str, lengths)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            yield tuple(json.loads(line))
    if process.returncode:
        sys.exit(f"benchmarks: prefill with {name} exited with status {process.returncode}")


def infini_table(lengths: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)) -> str:
    """Prefill time of Infini-attention by length."""
    model, system = opened(), Infini()
    lines = [
        "# Infini-attention: growth with length",
        "",
        f"Prefill of the converted embedded model, segments of {system.segment_length:,} tokens; "
        f"lengths"
        f" alternate, median of {_ROUNDS - 1} rounds after",
        "a warm-up.",
        "",
        "| tokens | prefill ms | us per token |",
        "|---|---|---|",
    ]
    rounds: dict[int, list[float]] = {length: [] for length in lengths}
    with under(model, system) as own:
        for _ in range(_ROUNDS):
            for length, seconds in rounds.items():
                seconds.append(prefill_seconds(own, prompt(own, length))[1])
    times = {length: median(seconds[1:]) for length, seconds in rounds.items()}
    for length, seconds in times.items():
        lines.append(f"| {length:,} | {1e3 * seconds:.1f} | {1e6 * seconds / length:.1f} |")
    first, last = lengths[0], lengths[-1]
    exponent = log(times[last] / times[first], last / first)
    lines += [
        "",
        f"Prefill time grows as n^{exponent:.2f} "
        f"({verdict(f'<= {MAX_EXPONENT}', exponent <= MAX_EXPONENT)}; 1 is linear).",
    ]
    print("\n".join(lines[-len(lengths) - 2 :]), file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"
