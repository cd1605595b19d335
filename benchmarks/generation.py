"""Benchmark sample generation against lm-evaluation-harness, in CPU seconds.

Each measurement is a separate process including start-up: open the tokenizer and generate 100
samples of one task at one length in one thread. needlework also fills prompts to the exact token
and writes a Parquet table. lm-eval's generators run unmodified in a separate environment, which
`make bench` creates. The tokenizer is an 8k byte-level BPE trained here.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import polars as pl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from needlework.tasks.haystacks.sentences import random_sentence

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".venv-lm-eval" / "bin" / "python"
SAMPLES = 100
LENGTHS = (4096, 32768, 131072)
TASKS = (
    "niah_single_1", "niah_single_2", "niah_multikey_3", "vt", "cwe", "fwe",
)  # fmt: skip


def generation_table() -> str:
    """The table as Markdown.

    Raises:
        SystemExit: lm-eval's environment does not exist.
    """
    if not PEER.exists():
        sys.exit(f"benchmarks: {PEER.parent.parent} does not exist; run `make bench` to create it")
    lines = [
        "# Sample generation: needlework and lm-evaluation-harness",
        "",
        f"CPU seconds for {SAMPLES} samples, one thread, start-up included, 8k byte-level BPE;",
        "tokenizing: each prompt once, without start-up. lm-eval 0.4.13, unmodified. needlework "
        "fills",
        "prompts to the exact token, records needle positions, and writes Parquet.",
        "",
        "| task | tokens | needlework | lm-eval | ratio | tokenizing | mean fill needlework | "
        "lm-eval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _prepare(folder)
        for task in TASKS:
            for length in LENGTHS:
                row = _row(folder, task, length)
                print(row, flush=True)
                lines.append(row)
    return "\n".join(lines) + "\n"


def _row(folder: Path, task: str, length: int) -> str:
    own = _cpu_seconds(folder, sys.executable, "make_own_samples.py", task, length)
    peer = _cpu_seconds(folder, PEER, "make_lm_eval_samples.py", task, length)
    tokenizing = _cpu_seconds(folder, sys.executable, "tokenize_samples.py", task, length)
    tokenizing -= _cpu_seconds(folder, sys.executable, "tokenize_samples.py", task, 0)
    table = pl.read_parquet(
        folder / f"own-{task}-{length}.parquet", columns=["tokens", "max_new_tokens"]
    )
    fill = ((table["tokens"] + table["max_new_tokens"]) / length).mean()
    peer_fill = float((folder / f"lm-eval-{task}-{length}.txt").read_text())
    return (
        f"| {task} | {length:,} | {own:.2f} | {peer:.1f} | {peer / own:.0f} | {tokenizing:.1f} | "
        f"{100 * fill:.1f} % | {100 * peer_fill:.1f} % |"
    )


def _prepare(folder: Path) -> None:
    """Write a tokenizer, essays and Punkt data where lm-eval looks for them."""
    random = Random(0)
    text = [" ".join(random_sentence(random) for _ in range(10)) for _ in range(3000)]
    numbers = [str(random.randrange(10**7)) for _ in range(2000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8192, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*text, *numbers], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "tokenizer")
    essays = folder / "baber" / "paul_graham_essays"
    essays.mkdir(parents=True)
    pl.DataFrame({"text": text}).write_ndjson(essays / "train.jsonl")
    punkt = folder / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    # Punkt data without abbreviations; the text has none.
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (punkt / name).touch()


def _cpu_seconds(folder: Path, python: str | Path, script: str, task: str, length: int) -> float:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "POLARS_MAX_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "NLTK_DATA": str(folder / "nltk_data"),
        "PYTHONPATH": str(ROOT) if Path(python) != PEER else "",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [python, ROOT / "benchmarks" / script, task, str(length), str(SAMPLES)],
        check=True, cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if length else None,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
