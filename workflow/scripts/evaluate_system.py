"""Answers of one system to one task at one length, or to a shard of its samples, by generation."""

from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from needlework.evaluation.early_stopping import climb
from needlework.evaluation.generation.answers import EvaluationJob, answers
from needlework.evaluation.generation.generate import unanswered
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    count = pl.scan_parquet(s.input.samples).select(pl.len()).collect().item()
    shard, shards = int(s.wildcards.get("shard", 0)), s.params.shards
    rows = slice(shard * count // shards, (shard + 1) * count // shards)
    asked, early_stopping = EvaluationJob.of(s.wildcards.system, s.params), s.params.early_stopping
    journal = s.kept("journal").with_suffix(".jsonl")
    climb(
        partial(
            answers,
            asked,
            s.input.samples,
            rows,
            s.threads,
            stops_early=early_stopping is not None,
            journal=(journal, s.key),
        ),
        [s.output.predictions, s.output.measurements, s.output.densities],
        unanswered(),
        cell=(s.wildcards.system, s.wildcards.task, int(s.wildcards.length)),
        early_stopping=early_stopping,
        before=s.input.before,
        scores_before=s.input.scores_before,
    )
# The tables hold it all, and a cell that is asked for anew is to be measured anew.
journal.unlink(missing_ok=True)
