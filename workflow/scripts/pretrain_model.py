"""A small model and its tokenizer, from nothing."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from needlework.config.training import Pretrain
from needlework.stage import stage
from needlework.training.pretrain import pretrain

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    torch.set_num_threads(s.threads)
    with TemporaryDirectory() as folder:
        recipe = Pretrain.model_validate(s.params.pretrain)
        metrics, measurements = pretrain(recipe, s.params.seed, Path(folder))
        s.adopt(folder)
    metrics.write_parquet(s.output.metrics)
    measurements.write_parquet(s.output.measurements)
