"""Compare planned with measured bytes and seconds for options of opening a model, on a GPU if
present.

Each row is a separate process that opens a random Llama from disk and answers prompts through the
same functions as a job of an experiment.
"""

import shutil
import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import torch
from transformers import AutoTokenizer, LlamaConfig

from benchmarks.plan import TOKENIZER, compared, make_random
from needlework.config.opening import ModelSpec, Opening
from needlework.evaluation.answer_store import AnswerStore
from needlework.evaluation.cell import Cell
from needlework.evaluation.generation.job import EvaluationJob, answer_cells
from needlework.planning.cost import Model
from needlework.planning.device_probe import device
from needlework.planning.shape import Shape

NEW_TOKENS = 16


@dataclass(frozen=True)
class Case:
    """A model and the options to open it with."""

    hidden: int
    layers: int
    dtype: str
    tokens: int
    variants: tuple[dict, ...]


CPU = Case(
    *(512, 8, "float32", 2048),
    variants=(
        {},
        {"quantization": "nf4"},
        {"quantization": "int8"},
        {"cache": "quantized"},
        {"prefill_chunk_tokens": 256},
        {"tp": 2},
    ),
)
_SPREAD = {"device_map": "auto", "cpu_offload": True}
CUDA = Case(
    *(2048, 24, "bfloat16", 32768),
    variants=(
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
"""Options that need two GPUs."""


def opening_table(case: Case | None = None) -> str:
    """The table as Markdown."""
    gpu = torch.cuda.is_available()
    case = case or (CUDA if gpu else CPU)
    variants = case.variants + (GPUS if torch.cuda.device_count() > 1 else ())
    lines = [
        "# Options of opening a model",
        "",
        f"A random Llama with {case.layers} layers and hidden size {case.hidden} in "
        f"{case.dtype}; one prompt of {case.tokens:,} tokens after a warm-up,",
        f"{NEW_TOKENS} new tokens, {'on a GPU' if gpu else 'one thread'}. Plans use config.json "
        f"and "
        "this machine's speed as",
        "`needlework plan --device here` measures it. Peak: "
        f"{'bytes allocated on the GPU' if gpu else 'peak resident memory'}. Token: seconds per "
        "decoded token.",
        "With `quantization` on a CPU, the peak includes bitsandbytes and pages of the "
        "checkpoint file",
        "that the system can reclaim; int8 copies what it multiplies.",
        "",
        "| options | cache planned | measured | error | peak planned | measured | error "
        "| prefill planned | measured | token planned | measured |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _save(folder, case)
        for options in variants:
            lines.append(_row(folder, case, options))
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def _save(folder: Path, case: Case) -> None:
    """Write the checkpoint and two prompts."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    heads = case.hidden // 64
    LlamaConfig(
        hidden_size=case.hidden, intermediate_size=3 * case.hidden,
        num_hidden_layers=case.layers, num_attention_heads=heads,
        num_key_value_heads=max(2, heads // 4), vocab_size=len(tokenizer),
        max_position_embeddings=2 * case.tokens, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)  # fmt: skip
    with get_context("spawn").Pool(1) as pool:
        pool.apply(make_random, (folder, case.dtype))
    prompt_tokens = case.tokens - NEW_TOKENS
    prompt = "hay " * (prompt_tokens - 1)
    words = prompt_tokens - (len(tokenizer(prompt)["input_ids"]) - prompt_tokens + 1)
    # The first is a warm-up; its answer differs, so that the second is not found in the store.
    rows = [
        {"task": "key", "length": case.tokens, "sample": sample, "prompt": "hay " * words}
        | {"tokens": prompt_tokens, "max_new_tokens": new_tokens}
        for sample, new_tokens in enumerate((NEW_TOKENS - 1, NEW_TOKENS))
    ]
    pl.DataFrame(rows).write_parquet(folder / "samples.parquet")


def _row(folder: Path, case: Case, options: dict) -> str:
    opening = Opening(**options)
    model = Model(Shape(LlamaConfig.from_pretrained(folder), case.dtype), opening=opening)
    planned = model.cost(None, case.tokens, device("here"))
    label = ", ".join(f"{key}: {value}" for key, value in options.items()) or "plain"
    with get_context("spawn").Pool(1) as pool:
        try:
            cache, peak, prefill, token = pool.apply(_answer, (folder, case.dtype, options))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()).replace("|", "/")
            return f"| {label} | {reason} |" + " |" * 9
    return (
        f"| {label} | {compared(planned.cache_bytes, cache)} | "
        f"{compared(planned.peak_bytes, peak)} "
        f"| {planned.prefill_seconds:.3g} s | {prefill:.3g} s "
        f"| {planned.decode_seconds_per_token:.3g} s | {token:.3g} s |"
    )


def _answer(folder: Path, dtype: str, options: dict) -> tuple[int, int, float, float]:
    """Cache bytes, peak bytes, prefill seconds and seconds per token of the second prompt."""
    spec = ModelSpec(path=folder, dtype=dtype, opening=Opening(**options))
    job = EvaluationJob(system="opened", model=spec)
    cell = Cell(str(folder / "samples.parquet"), 0, 2)
    with tempfile.TemporaryDirectory() as store:
        (predictions, measurements, _), _ = answer_cells(job, [cell], AnswerStore(store))
    measured = measurements.row(1, named=True)
    return (
        predictions["cache_bytes"][1],
        measured["peak_memory_bytes"],
        measured["prefill_seconds"],
        measured["decode_seconds"] / (NEW_TOKENS - 1),
    )
