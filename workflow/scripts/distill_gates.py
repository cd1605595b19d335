"""Gates of a frozen model, trained to tell which blocks its own attention looks at."""

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl
import torch

from needlework.config.gates import SeerGates
from needlework.models.checkpoint import open_model
from needlework.stage import stage
from needlework.training.distill import distill

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    torch.set_num_threads(s.threads)
    torch.manual_seed(s.params.seed)
    model, tokenizer = open_model(
        s.params.model,
        dtype=s.params.dtype,
        revision=s.params.revision,
        allow_pickle=s.params.allow_pickle,
    )
    config = SeerGates.model_validate(s.params.gates)
    rows = pl.concat([pl.read_parquet(file, columns=["prompt", "answer"]) for file in s.input.rows])
    gates, metrics, measurements = distill(model, tokenizer, rows, config, s.params.seed)
    with TemporaryDirectory() as folder:
        gates.save(folder)
        s.adopt(folder)
    metrics.write_parquet(s.output.metrics)
    measurements.write_parquet(s.output.measurements)
