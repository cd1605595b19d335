"""Benchmark training steps against transformers' Trainer.

The embedded model on passkey rows in float32, with one process and one thread. All loops take the
same rows in the same order with the same AdamW, clipping and cosine schedule, as their losses
confirm. The Trainer runs unmodified, and also with our loss, which computes logits only for
answers. The loops alternate for several rounds; the first round is a warm-up.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import polars as pl
import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.timing import verdict
from needlework.config.finetune_data import PasskeyExamples
from needlework.config.opening import ModelSpec
from needlework.config.training import Finetune
from needlework.finetune_data.passkey import make_examples
from needlework.models.checkpoint import open_model
from needlework.tasks.prompts.tokenizer import open_tokenizer
from needlework.training.data_order import cycle_shuffled
from needlework.training.finetune import answer_loss, collate, encode, finetune

MODEL = Path(__file__).resolve().parent.parent / "resources" / "needlework-tiny"
LENGTHS, ROUNDS, STEPS = (256, 1024), 5, 8
BATCH, SEED, TARGET = 4, 1, 1.05
RECIPE = Finetune(
    data="rows",
    steps=STEPS,
    batch_size=BATCH,
    sequence_length=2 * max(LENGTHS),
    warmup_steps=0,
    final_learning_rate_ratio=0.0,
)
Run = Callable[[pl.DataFrame], tuple[float, float]]
"""Rows -> seconds per step, mean loss over all steps."""


def training_table(lengths: tuple[int, ...] = LENGTHS, rounds: int = ROUNDS) -> str:
    """The table as Markdown."""
    runs: dict[str, Run] = {
        "Trainer": lambda rows: _trainer(rows, Trainer),
        "Trainer, our loss": lambda rows: _trainer(rows, _WithOurLoss),
        "needlework": _needlework,
    }
    lines = [
        "# Training",
        "",
        f"Steps of {BATCH} rows with the embedded model, float32, one thread; medians of {rounds} "
        f"rounds of {STEPS} steps. Our loss computes logits only for answers.",
        "",
        "| tokens per row | loop | seconds per step | needlework / loop | mean loss |",
        "|---|---|---|---|---|",
    ]
    for length in lengths:
        rows = _rows(length)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        losses = {}
        for _ in range(rounds + 1):
            for name, run in runs.items():
                taken, losses[name] = run(rows)
                seconds[name].append(taken)
        medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
        for name, taken in medians.items():
            ratio = medians["needlework"] / taken
            comparison = (
                ""
                if name == "needlework"
                else f"{ratio:.3f}, {verdict(f'<= {TARGET}', ratio <= TARGET)}"
            )
            lines.append(
                f"| {length:,} | {name} | {taken:.4f} | {comparison} | {losses[name]:.6f} |"
            )
    return "\n".join(lines) + "\n"


def _rows(length: int) -> pl.DataFrame:
    config = PasskeyExamples(examples=BATCH * STEPS, length=length)
    return make_examples(config, open_tokenizer(MODEL), SEED)


def _needlework(rows: pl.DataFrame) -> tuple[float, float]:
    model, tokenizer = open_model(ModelSpec(path=MODEL), device="cpu")
    metrics, measurements = finetune(model, tokenizer, rows, RECIPE, SEED)
    first, last = measurements["seconds"]
    # The second row is the mean of the steps after the first.
    loss = (metrics["loss"][0] + (STEPS - 1) * metrics["loss"][1]) / STEPS
    return (last - first) / (STEPS - 1), loss


class _WithOurLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return answer_loss(model, inputs, inputs)


class _Clock(TrainerCallback):
    """Record when each step ends."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def _trainer(rows: pl.DataFrame, kind: type[Trainer]) -> tuple[float, float]:
    model, tokenizer = open_model(ModelSpec(path=MODEL), device="cpu")
    encoded = encode(tokenizer, rows, RECIPE.sequence_length)
    order = cycle_shuffled(range(len(encoded)), torch.Generator().manual_seed(SEED))
    batches = [
        collate([encoded[number] for number in islice(order, BATCH)], tokenizer.eos_token_id)
        for _ in range(STEPS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            learning_rate=RECIPE.learning_rate,
            lr_scheduler_type="cosine",
            weight_decay=RECIPE.weight_decay,
            adam_beta2=RECIPE.adam_betas[1],
            max_grad_norm=RECIPE.max_grad_norm,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        )
        clock = _Clock()
        trainer = kind(model=model, args=arguments, train_dataset=batches, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.get_train_dataloader = lambda: DataLoader(batches, batch_size=None)
        loss = trainer.train().training_loss
    return (clock.ends[-1] - clock.ends[0]) / (STEPS - 1), loss
