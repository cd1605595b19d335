"""Rows to train on, as a Parquet table."""

from importlib import import_module
from typing import TYPE_CHECKING

import polars as pl
from pydantic import TypeAdapter

from needlework.config.tasks import AnyExamples, AnyTask
from needlework.pipeline.stage import stage
from needlework.tasks.prompts.tokenizer import end_token_id, open_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    config = TypeAdapter(AnyExamples).validate_python(s.params.data)
    more = {}
    if config.type == "task":
        tables = map(pl.read_parquet, s.input.haystacks)
        more = {
            "task": TypeAdapter(AnyTask).validate_python(s.params.task),
            "depths": s.params.depths,
            "haystacks": dict(zip(config.lengths, tables, strict=False)),
        }
    if config.type == "text":
        more = {"end": end_token_id(s.params.tokenizer, s.params.revision)}
    tokenizer = open_tokenizer(s.params.tokenizer, s.params.revision)
    make = import_module(config.module).make_examples
    table = make(config, tokenizer, s.params.seed, **more)
    table.write_parquet(s.output.rows)
