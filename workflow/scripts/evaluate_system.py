"""Answers of one system to one task at one length, by real generation."""

from typing import TYPE_CHECKING

import polars as pl
import torch
from pydantic import TypeAdapter

from needlework.config.systems import AnyAttention
from needlework.evaluation.retrieve import retrieve
from needlework.models.checkpoint import open_model
from needlework.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    torch.set_num_threads(s.threads)
    model, tokenizer = open_model(
        s.params.model,
        dtype=s.params.dtype,
        revision=s.params.revision,
        allow_pickle=s.params.allow_pickle,
    )
    attention = TypeAdapter(AnyAttention | None).validate_python(s.params.attention)
    predictions, measurements, densities = retrieve(
        model,
        tokenizer,
        pl.read_parquet(s.input.samples),
        system=s.wildcards.system,
        attention=attention,
        thinking_tokens=s.params.thinking_tokens,
    )
    predictions.write_parquet(s.output.predictions)
    measurements.write_parquet(s.output.measurements)
    densities.write_parquet(s.output.densities)
