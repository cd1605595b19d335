"""Make the tokenizer of a model to pretrain."""

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from needlework.models.tiny import word_tokenizer
from needlework.pipeline.stage import stage
from needlework.training.curriculum import vocabulary

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s, TemporaryDirectory() as folder:
    word_tokenizer(vocabulary(), s.params.max_positions).save_pretrained(folder)
    s.collect_outputs(folder)
