"""Answers of one system to one task at one length, or to a shard of its samples, by generation."""

from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from needlework.evaluation.early_stopping import write_unless_stopped
from needlework.evaluation.generation.answers import EvaluationJob, answer_samples
from needlework.evaluation.generation.generate import empty_tables
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    count = pl.scan_parquet(s.input.samples).select(pl.len()).collect().item()
    shard, shards = int(s.wildcards.get("shard", 0)), s.params.shards
    rows = slice(shard * count // shards, (shard + 1) * count // shards)
    job, early_stopping = EvaluationJob.of(s.wildcards.system, s.params), s.params.early_stopping
    journal = s.checkpoint_path("journal").with_suffix(".jsonl")
    write_unless_stopped(
        partial(
            answer_samples,
            job,
            s.input.samples,
            rows,
            s.threads,
            early_stopping=early_stopping is not None,
            journal=(journal, s.key),
        ),
        [s.output.predictions, s.output.measurements, s.output.densities],
        empty_tables(),
        cell=(s.wildcards.system, s.wildcards.task, int(s.wildcards.length)),
        early_stopping=early_stopping,
        shorter_predictions=s.input.shorter_predictions,
        shorter_scores=s.input.shorter_scores,
    )
# The tables hold every answer; a forced rerun measures the cell again.
journal.unlink(missing_ok=True)
