"""Making samples: CPU seconds of ours beside lm-evaluation-harness's own generators.

Each measurement is a process of its own, start-up included: open the tokenizer, make 100 samples of
one task at one length, in one thread. Ours also fills to the token and writes the Parquet table.
lm-eval's generators are called unmodified, in an environment of its own (`make bench` sets it up).
The tokenizer is an 8k byte-level BPE trained here.
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
    """The table, in Markdown.

    Raises:
        SystemExit: lm-eval's environment is not there.
    """
    if not PEER.exists():
        sys.exit(f"benchmarks: no lm-eval in {PEER.parent.parent}; run `make bench`")
    lines = [
        "# Making samples beside lm-evaluation-harness",
        "",
        f"CPU seconds for {SAMPLES} samples, one thread, start-up included, 8k byte-level BPE;",
        "tokenizing: the same prompts once each, without start-up. lm-eval 0.4.13, its generators",
        "unmodified. Ours fills to the token, records where needles stand, and writes Parquet.",
        "",
        "| task | tokens | ours | lm-eval | times less | tokenizing | mean fill ours | lm-eval's |",
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
    """A tokenizer, an essay and Punkt data, where lm-eval looks for them."""
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
    # Data of Punkt that knows no abbreviation: the text has none.
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
