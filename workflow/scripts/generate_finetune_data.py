"""Rows to fine-tune on, as a Parquet table."""

from typing import TYPE_CHECKING

from needlework.config.tasks import PasskeyExamples
from needlework.stage import stage
from needlework.tasks.passkey import examples
from needlework.tasks.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    config = PasskeyExamples.model_validate(s.params.data)
    table = examples(config, open_tokenizer(s.params.tokenizer, s.params.revision), s.params.seed)
    table.write_parquet(s.output.rows)
