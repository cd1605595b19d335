"""The model card of a model that this workflow made: what it is, from what, how good."""

from collections.abc import Iterator
from typing import Any

import polars as pl

WANTED = 0.95
"""Accuracy below which the card names a cell as falling short."""

_START = {
    "induction": (
        "**The start was set by hand, not random.** The first layer's heads are set to look one to "
        "four tokens back, and those of the later layers to find earlier text that resembles the "
        "last few tokens, which is the circuit known as an induction head; training then does the "
        "rest. Embeddings and feed-forward parts start random. The same recipe from a random start "
        "was not tried, so what this model can do says nothing about what training alone finds."
    ),
    "random": "The start was random: normal weights.",
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
    """Markdown with Hugging Face front matter.

    Args:
        name: the model's name in the experiment.
        recipe: the `pretrain` part of the experiment file, defaults filled in.
        summary: rows of the systems that are this model with its own attention.
        metrics, measurements: the training tables (`training.loop.train`).
        hashes: sha256 by file name.
        versions: experiment, seed, code and commit, as the caller knows them.
    """
    tokens, seconds = metrics["tokens"].max(), measurements["seconds"].max()
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

A very small Llama ({recipe["layers"]} layers, hidden {recipe["hidden_size"]}, heads of
{recipe["head_size"]}) that answers synthetic retrieval prompts and nothing else: it is the test
animal of needlework's default experiment, not a language model to talk to. It opens with
`AutoModelForCausalLM.from_pretrained`, without any code of needlework.

## Data

No text of anybody: every training sequence was generated. Kinds: `recall` (short key and value
pairs, asked back), `passkey` (a pass key in repeated filler), `noise` and `sentences` (needles with
random numbers in RULER's noise paragraph, or in sentences of random wonderwords words, with many
questions a sequence). {recipe["held_out_words"]:.0%} of the key words were held out, so that
evaluation can ask for keys that training never showed.

| tokens a sequence | sequences a step | steps | kinds, mixed evenly | positions jump ahead in |
|---|---|---|---|---|
{stages}

{tokens:,} tokens in {seconds:,.0f} seconds on one CPU thread. Positions jump ahead (PoSE) so that
the model reaches beyond the lengths it was trained on; rope_theta is {recipe["rope_theta"]:g}.

## Initialisation

{_START[recipe["start"]]}

## Accuracy

Exact generation, greedy: share of prompts whose answer holds the value asked for, all depths
together, with 95 % Wilson intervals.

{_accuracy(summary)}

{_shortfall(summary)}

## Lineage

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
        if row["accuracy"] < WANTED
    ]
    if not short:
        return f"No cell is below {WANTED:.0%}."
    return f"**Where it falls short of {WANTED:.0%}:** {', '.join(short)}."


def _accuracy(summary: pl.DataFrame) -> str:
    lines = ["| task | tokens | n | accuracy | 95 % interval |", "|---|---|---|---|---|"]
    for row in _cells(summary):
        lines.append(
            f"| {row['task']} | {row['length']:,} | {row['n']} | {row['accuracy']:.1%} | "
            f"{row['ci_low']:.1%} to {row['ci_high']:.1%} |"
        )
    return "\n".join(lines)
