"""Samples of one task at one length, in one tokenizer's tokens."""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from needlework.config.tasks import AnyTask
from needlework.stage import stage
from needlework.tasks.generate import samples
from needlework.tasks.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    table = samples(
        TypeAdapter(AnyTask).validate_python(s.params.task),
        open_tokenizer(s.params.tokenizer),
        task_name=s.wildcards.task,
        length=int(s.wildcards.length),
        count=s.params.samples,
        depths=s.params.depths,
        seed=s.params.seed,
    )
    table.write_parquet(s.output.samples)
