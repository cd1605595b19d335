"""`make bench`: ratios against peers, measured side by side in one run, as Markdown.

Each table goes to benchmarks/results/<name>.md with date, processor, versions and commit. Names as
arguments run those parts alone: `make bench PARTS=attention`.
"""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.generation import generation_table
from needlework import Random, SketchWalk, apply
from needlework.models.checkpoint import open_model
from needlework.stage import device_name, package_versions

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "resources" / "needlework-tiny"
SETTINGS = {"density": 0.25, "dense_layers": 1}


def main() -> None:
    torch.set_num_threads(1)
    parts = {"attention": attention_table, "generation": generation_table}
    for name in sys.argv[1:] or parts:
        if name not in parts:
            sys.exit(f"benchmarks: no part {name}; name {' or '.join(parts)}")
        table = parts[name]()
        path = ROOT / "benchmarks" / "results" / f"{name}.md"
        path.write_text(f"{table}\n{_conditions()}")
        print(path.read_text())


def attention_table() -> str:
    """Prefill and decode of each system over stock attention (sdpa), same model, same prompts."""
    model, tokenizer = open_model(MODEL)
    systems = {
        "stock (sdpa)": None,
        "sketchwalk, block 16": SketchWalk(heads="sum", block_size=16, **SETTINGS),
        "sketchwalk, block 4": SketchWalk(heads="sum", block_size=4, **SETTINGS),
        "random, block 16": Random(block_size=16, **SETTINGS),
    }
    lines = [
        "# Attention systems beside stock attention",
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


def _conditions() -> str:
    versions = package_versions()
    shown = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "torch", "transformers", "tokenizers")
    )
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return (
        f"\n{datetime.now(UTC):%Y-%m-%d}, {device_name()}, "
        f"{os.cpu_count()} cores, {shown}, commit {commit or 'none'}.\n"
    )


if __name__ == "__main__":
    main()
