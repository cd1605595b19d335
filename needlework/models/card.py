"""The model card of a pretrained model: data, initialization, accuracy, provenance."""

from collections.abc import Iterator
from typing import Any

import polars as pl

TARGET_ACCURACY = 0.95
"""The card lists the tasks and lengths with a lower accuracy."""

_INITIALIZATION = {
    "induction": (
        "**Attention was initialized by hand, not at random.** Heads of the first layer start out "
        "attending one to four tokens back, and those of later layers to earlier text that "
        "resembles the last few tokens, a circuit known as an induction head; training continues "
        "from there. Embeddings and feed-forward layers start at random. The recipe was not tried "
        "from a random initialization, so this model does not show what training alone can find."
    ),
    "random": "All weights were initialized at random, from a normal distribution.",
}


def card(
    name: str,
    recipe: dict[str, Any],
    summary: pl.DataFrame,
    metrics: pl.DataFrame,
    measurements: pl.DataFrame,
    hashes: dict[str, str],
    versions: dict[str, Any],
) -> str:
    """Write the model card: Markdown with Hugging Face front matter.

    Args:
        name: the model's name in the experiment.
        recipe: the model's `pretrain` section with all defaults.
        summary: accuracy of this model with its own attention, as of `scoring.aggregate`.
        metrics, measurements: the training tables (`training.loop.train`).
        hashes: sha256 by file name.
        versions: rows of the provenance table: experiment, seed, code version, commit.
    """
    tokens, seconds = int(metrics["tokens"][-1]), float(measurements["seconds"][-1])
    stages = "\n".join(
        f"| {stage['length']:,} | {stage['rows']} | {stage['steps']:,} | "
        f"{', '.join(stage['exercises'])} | {stage['jumps']:.0%} |"
        for stage in recipe["stages"]
    )
    hashed = "\n".join(f"| {file} | `{sha256}` |" for file, sha256 in hashes.items())
    facts = "\n".join(f"| {key} | {value} |" for key, value in versions.items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A very small Llama ({recipe["layers"]} layers, hidden {recipe["hidden_size"]},
heads of {recipe["head_size"]}) for synthetic retrieval prompts. It exists for needlework's default
experiment and is not a general language model. `AutoModelForCausalLM.from_pretrained` loads it
without needlework.

## Data

All training sequences were generated. Kinds: `recall` (short key-value pairs, then questions about
them), `passkey` (a pass key in repeated filler), `noise` and `sentences` (needles with random
numbers in RULER's noise paragraph, or in sentences of random words from wonderwords, with many
questions per sequence). {recipe["held_out_words"]:.0%} of the key words were held out, so that
evaluation can use keys that training never showed.

| tokens per sequence | sequences per step | steps | kinds, in equal shares | with position jumps |
|---|---|---|---|---|
{stages}

{tokens:,} tokens in {seconds:,.0f} seconds on one CPU thread. Position ids jump ahead (PoSE) so
that the model works beyond the lengths it was trained on; rope_theta is {recipe["rope_theta"]:g}.

## Initialization

{_INITIALIZATION[recipe["start"]]}

## Accuracy

Share of prompts whose answer, generated greedily with dense attention, contains the value in
question; over all depths, with 95% Wilson intervals.

{_accuracy(summary)}

{_shortfall(summary)}

## Provenance

| | |
|---|---|
{facts}

| file | sha256 |
|---|---|
{hashed}
"""


def _cells(summary: pl.DataFrame) -> Iterator[dict[str, Any]]:
    rows = summary.filter(pl.col("depth_percent").is_null() & (pl.col("metric") == "all"))
    return rows.sort("task", "length", maintain_order=True).iter_rows(named=True)


def _shortfall(summary: pl.DataFrame) -> str:
    short = [
        f"{row['task']} at {row['length']:,} tokens ({row['accuracy']:.1%})"
        for row in _cells(summary)
        if row["accuracy"] < TARGET_ACCURACY
    ]
    if not short:
        return f"No task is below {TARGET_ACCURACY:.0%} at any length."
    return f"**Below {TARGET_ACCURACY:.0%}:** {', '.join(short)}."


def _accuracy(summary: pl.DataFrame) -> str:
    lines = ["| task | tokens | n | accuracy | 95% interval |", "|---|---|---|---|---|"]
    for row in _cells(summary):
        lines.append(
            f"| {row['task']} | {row['length']:,} | {row['n']} | {row['accuracy']:.1%} | "
            f"{row['ci_low']:.1%} to {row['ci_high']:.1%} |"
        )
    return "\n".join(lines)
