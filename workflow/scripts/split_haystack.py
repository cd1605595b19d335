"""Split the user's text into sentences and count their tokens."""

from typing import TYPE_CHECKING

from needlework.config.tasks.haystack import Haystack
from needlework.pipeline.stage import stage
from needlework.sources.texts import read_texts
from needlework.tasks.haystacks.punkt import sentence_table
from needlework.tasks.prompts.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    haystack = Haystack.model_validate(s.params.haystack)
    texts = read_texts(haystack.path, haystack.column, haystack.split)
    tokenizer = open_tokenizer(s.params.tokenizer, s.params.revision)
    table = sentence_table(texts, tokenizer, s.params.length)
    table.write_parquet(s.output.sentences)
