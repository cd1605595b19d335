"""Benchmark streaming perplexity against the strided loop of Hugging Face's guide.

The embedded model on generated text, with one process and one thread. The guide's loop is
unchanged: full logits of each window, the model's own loss, one window at a time. A million tokens
from a file go through Infini-attention (weights of the embedded model, untrained gates);
STREAM_TOKENS=1000000,10000000 sets other lengths.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from needlework.config.attention.infini import Infini
from needlework.config.attention.window import Window
from needlework.config.opening import ModelSpec
from needlework.evaluation.streaming.accumulator import Accumulator
from needlework.evaluation.streaming.evaluator import StreamingEvaluator
from needlework.evaluation.streaming.token_source import TokenFile, sized, write_tokens
from needlework.finetune_data.recall_text import recall_text
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert

MODEL = Path(__file__).resolve().parent.parent / "resources" / "needlework-tiny"
WINDOW, TOKENS = 1024, 8_192
LENGTHS = [int(tokens) for tokens in os.environ.get("STREAM_TOKENS", "1000000").split(",")]


def streaming_table() -> str:
    """The tables as Markdown."""
    model, tokenizer = open_model(ModelSpec(path=MODEL), device="cpu")
    infini = convert(model, Infini(segment_length=128))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.npy"
        sentences = recall_text(1, 0.5)
        text = iter(lambda: "".join(islice(sentences, 256)), "")
        write_tokens([sized(text, tokenizer.backend_tokenizer)], file, max(LENGTHS))
        ids = np.load(file, mmap_mode="r")[:TOKENS].astype(np.int64)
        parts = [_against_guide(model, ids), _overlaps(model, ids), _chunks(model, infini, ids)]
        parts += [_millions(infini, file)]
    return "# Streaming perplexity\n\n" + "\n".join(parts)


def _against_guide(model, ids: np.ndarray) -> str:
    stride = WINDOW // 2
    lines = [
        "## Strided windows and the loop of Hugging Face's guide",
        "",
        f"Windows of {WINDOW} tokens, stride {stride}, {TOKENS:,} tokens, float32, one thread; "
        "medians of three alternating runs.",
        "",
        "| loop | perplexity | tokens/s | speed-up |",
        "|---|---|---|---|",
    ]
    runs: dict[str, Callable[[], float]] = {"Hugging Face's": lambda: _guide(model, ids, stride)}
    for batch_size in (1, 4, 8):
        evaluator = StreamingEvaluator(
            model, WINDOW, WINDOW - stride, "cpu", False, window_batch_size=batch_size
        )
        runs[f"needlework, batch of {batch_size}"] = lambda evaluator=evaluator: (
            evaluator.evaluate_streaming(ids)["perplexity"]
        )
    seconds, perplexity = {name: [] for name in runs}, {}
    for _ in range(3):
        for name, run in runs.items():
            started = time.perf_counter()
            perplexity[name] = run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: sorted(times)[1] for name, times in seconds.items()}
    for name, taken in medians.items():
        speedup = medians["Hugging Face's"] / taken
        lines.append(f"| {name} | {perplexity[name]:.4f} | {TOKENS / taken:,.0f} | {speedup:.2f} |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def _guide(model, ids: np.ndarray, stride: int) -> float:
    """Perplexity by the guide's loop, with windows weighted by the tokens they score."""
    ids = torch.from_numpy(ids)[None]
    total, scored, before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + WINDOW, ids.shape[1])
        target = ids[:, begin:end].clone()
        target[:, : -(end - before)] = -100
        loss = model(ids[:, begin:end], labels=target).loss
        # The very first token has no logit.
        tokens = end - before - (begin == 0)
        total, scored, before = total + float(loss) * tokens, scored + tokens, end
        if end == ids.shape[1]:
            break
    return math.exp(total / scored)


def _overlaps(model, ids: np.ndarray) -> str:
    lines = [
        "## Overlap",
        "",
        f"Dense attention, {TOKENS:,} tokens: windows of {WINDOW} tokens, and the whole text.",
        "",
        "| mode | chunk | overlap | perplexity | tokens/s |",
        "|---|---|---|---|---|",
    ]
    for chunk, overlap in [(WINDOW, x) for x in (1, 256, 512, 768, 960)] + [(WINDOW, 0)]:
        result = StreamingEvaluator(model, chunk, overlap, "cpu", False).evaluate_streaming(ids)
        lines.append(_row(result))
    return "\n".join(lines) + "\n"


def _chunks(model, infini, ids: np.ndarray) -> str:
    window = Window(dense_layers=0, recent_tokens=512)
    lines = [
        "## Chunk size",
        "",
        "The same text with carried state: the chunk size affects the speed, not the perplexity. "
        "State: bytes carried at the end.",
        "",
        "| system | mode | chunk | perplexity | tokens/s | state (KiB) |",
        "|---|---|---|---|---|---|",
    ]
    for name, attention, read in (
        ("infini, segments of 128", None, infini),
        ("window, 4 + 512", window, model),
        ("dense", None, model),
    ):
        for chunk in (128, 512, 2048):
            evaluator = StreamingEvaluator(read, chunk, 0, "cpu", False, attention=attention)
            accumulator, started = Accumulator(), time.perf_counter()
            for _ in evaluator.chunks(ids, accumulator=accumulator):
                pass
            speed = TOKENS / (time.perf_counter() - started)
            lines.append(
                f"| {name} | {evaluator.run.mode} | {chunk:,} | {math.exp(accumulator.loss):.4f} | "
                f"{speed:,.0f} | {accumulator['state_bytes'][-1] / 1024:,.0f} |"
            )
    return "\n".join(lines) + "\n"


def _row(result: dict) -> str:
    return (
        f"| {result['mode']} | {result['chunk_size']:,} | {result['overlap']:,} | "
        f"{result['perplexity']:.4f} | {result['tokens_per_second']:,.0f} |"
    )


def _millions(infini, file: Path) -> str:
    lines = [
        "## Long texts through Infini-attention",
        "",
        "From a memory-mapped file in chunks of 512. Resident memory: mean over the chunks of "
        "each half; "
        "milliseconds per chunk: medians of the first and last tenth.",
        "",
        "| tokens | tokens/s | MiB, first half | second half | ms, first tenth | last tenth |",
        "|---|---|---|---|---|---|",
    ]
    for tokens in LENGTHS:
        evaluator, accumulator = StreamingEvaluator(infini, 512, 0, "cpu", False), Accumulator()
        started = time.perf_counter()
        for _ in evaluator.chunks(TokenFile(file), tokens, accumulator):
            pass
        speed = tokens / (time.perf_counter() - started)
        memory, seconds = accumulator["memory_bytes"] / 2**20, 1000 * accumulator["seconds"]
        half, tenth = len(accumulator) // 2, len(accumulator) // 10
        lines.append(
            f"| {tokens:,} | {speed:,.0f} | {memory[:half].mean():,.1f} | "
            f"{memory[half:].mean():,.1f} | {np.median(seconds[:tenth]):.1f} | "
            f"{np.median(seconds[-tenth:]):.1f} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"
