"""Another model of the experiment, converted where asked, then fine-tuned."""

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl
import torch
from pydantic import TypeAdapter

from needlework.config.systems import AnyAttention
from needlework.config.training import Finetune
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert
from needlework.stage import stage
from needlework.training.finetune import finetune

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    torch.set_num_threads(s.threads)
    torch.manual_seed(s.params.seed)
    model, tokenizer = open_model(s.params.base, dtype=s.params.dtype)
    attention = TypeAdapter(AnyAttention | None).validate_python(s.params.attention)
    model = convert(model, attention)
    rows = pl.read_parquet(s.input.rows)
    recipe = Finetune.model_validate(s.params.finetune)
    metrics, measurements = finetune(model, tokenizer, rows, recipe, s.params.seed)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        s.adopt(folder)
    metrics.write_parquet(s.output.metrics)
    measurements.write_parquet(s.output.measurements)
