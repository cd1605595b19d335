"""Ways of opening one model beside their plan: bytes and seconds, on a GPU where there is one.

Each way is a process of its own that opens a random Llama from disk and answers prompts through the
same functions as an experiment's job.
"""

import shutil
import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import torch
from transformers import AutoTokenizer, LlamaConfig

from benchmarks.plan import TOKENIZER, beside, make_random
from needlework.config.opening import Opening
from needlework.evaluation.generation.answers import EvaluationJob, answer_samples
from needlework.planning.cost import Model
from needlework.planning.device_probe import device
from needlework.planning.shape import Shape

NEW_TOKENS = 16


@dataclass(frozen=True)
class Setting:
    """A model and the ways in which it is opened."""

    hidden: int
    layers: int
    dtype: str
    tokens: int
    ways: tuple[dict, ...]


CPU = Setting(
    *(512, 8, "float32", 2048),
    ways=(
        {},
        {"quantization": "nf4"},
        {"quantization": "int8"},
        {"cache": "quantized"},
        {"prefill_chunk_tokens": 256},
        {"tp": 2},
    ),
)
_SPREAD = {"device_map": "auto", "cpu_offload": True}
CUDA = Setting(
    *(2048, 24, "bfloat16", 32768),
    ways=(
        {},
        {"quantization": "nf4"},
        {"quantization": "int8"},
        {"cache": "quantized"},
        {"cache": "offloaded"},
        {"prefill_chunk_tokens": 4096},
        {"prefill_chunk_tokens": 4096, "attn_implementation": "flex_attention"},
        {**_SPREAD, "max_memory": {"0": "1GiB", "cpu": "60GiB"}},
    ),
)
GPUS = ({"pp": 2}, {"tp": 2})
"""Ways that take two."""


def opening_table(setting: Setting | None = None) -> str:
    """The table, in Markdown."""
    gpu = torch.cuda.is_available()
    setting = setting or (CUDA if gpu else CPU)
    ways = setting.ways + (GPUS if torch.cuda.device_count() > 1 else ())
    lines = [
        "# Ways of opening a model",
        "",
        f"A random Llama of {setting.layers} layers, hidden {setting.hidden}, {setting.dtype}; one "
        f"prompt of {setting.tokens:,} tokens, after one",
        f"to warm up, and {NEW_TOKENS} new tokens, {'on a GPU' if gpu else 'one thread a way'}. "
        "Planned from config.json alone, for this machine as",
        "`needlework plan --device here` measures it. Peak: "
        f"{'bytes allocated on the GPU' if gpu else 'most resident memory'}. Token: seconds of one "
        "that decodes.",
        "Under `quantization` on a CPU the peak holds pages of the file that was read, which the",
        "system takes back when it needs room, and bitsandbytes itself; int8 makes copies of what "
        "it multiplies.",
        "",
        "| opened | cache planned | measured | off | peak planned | measured | off "
        "| prefill planned | measured | token planned | measured |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _save(folder, setting)
        for way in ways:
            lines.append(_row(folder, setting, way))
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def _save(folder: Path, setting: Setting) -> None:
    """The checkpoint, and two prompts."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    heads = setting.hidden // 64
    LlamaConfig(
        hidden_size=setting.hidden, intermediate_size=3 * setting.hidden,
        num_hidden_layers=setting.layers, num_attention_heads=heads,
        num_key_value_heads=max(2, heads // 4), vocab_size=len(tokenizer),
        max_position_embeddings=2 * setting.tokens, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)  # fmt: skip
    with get_context("spawn").Pool(1) as pool:
        pool.apply(make_random, (folder, setting.dtype))
    asked = setting.tokens - NEW_TOKENS
    prompt = "hay " * (asked - 1)
    words = asked - (len(tokenizer(prompt)["input_ids"]) - asked + 1)
    rows = [
        {"task": "key", "length": setting.tokens, "sample": sample, "prompt": "hay " * words}
        | {"tokens": asked, "max_new_tokens": NEW_TOKENS}
        for sample in range(2)
    ]
    pl.DataFrame(rows).write_parquet(folder / "samples.parquet")


def _row(folder: Path, setting: Setting, way: dict) -> str:
    opening = Opening(**way)
    model = Model(Shape(LlamaConfig.from_pretrained(folder), setting.dtype), opening=opening)
    planned = model.cost(None, setting.tokens, device("here"))
    named = ", ".join(f"{key}: {value}" for key, value in way.items()) or "plain"
    with get_context("spawn").Pool(1) as pool:
        try:
            cache, peak, prefill, token = pool.apply(_answer, (folder, setting.dtype, way))
        except (ValueError, RuntimeError) as error:
            told = " ".join(str(error).split()).replace("|", "/")
            return f"| {named} | {told} |" + " |" * 9
    return (
        f"| {named} | {beside(planned.cache_bytes, cache)} | {beside(planned.peak_bytes, peak)} "
        f"| {planned.prefill_seconds:.3g} s | {prefill:.3g} s "
        f"| {planned.decode_seconds_per_token:.3g} s | {token:.3g} s |"
    )


def _answer(folder: Path, dtype: str, way: dict) -> tuple[int, int, float, float]:
    """Of the second prompt: cache and peak bytes, seconds of the prefill and of a token."""
    opening = Opening(**way).model_dump()
    job = EvaluationJob("opened", str(folder), dtype, None, False, opening, False, None, 0)
    predictions, measurements, _ = answer_samples(job, folder / "samples.parquet", slice(0, 2), 1)
    measured = measurements.row(1, named=True)
    return (
        predictions["cache_bytes"][1],
        measured["peak_memory_bytes"],
        measured["prefill_seconds"],
        measured["decode_seconds"] / (NEW_TOKENS - 1),
    )
