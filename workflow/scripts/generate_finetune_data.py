"""Generate training rows as a Parquet table."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import TypeAdapter

from needlework.config.finetune_data import AnyExamples
from needlework.config.tasks.registry import AnyTask
from needlework.pipeline.stage import stage
from needlework.tasks.prompts.tokenizer import end_token_id, open_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    config = TypeAdapter(AnyExamples).validate_python(s.params.data)
    extra: dict[str, Any] = {}
    if config.task_name is not None:
        tables = map(pl.read_parquet, s.input.haystacks)
        extra = {
            "task": TypeAdapter(AnyTask).validate_python(s.params.task),
            "depths": s.params.depths,
            "haystacks": dict(zip(config.lengths, tables, strict=False)),
        }
    if config.ends_documents:
        extra = {"end": end_token_id(s.params.tokenizer, s.params.revision)}
    tokenizer = open_tokenizer(s.params.tokenizer, s.params.revision)
    make_examples = import_module(config.module).make_examples
    table = make_examples(config, tokenizer, s.params.seed, **extra)
    table.write_parquet(s.output.rows)
