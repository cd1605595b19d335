"""Sentences of a text of the user's, with their tokens in one tokenizer."""

from typing import TYPE_CHECKING

from needlework.config.tasks import Haystack
from needlework.stage import stage
from needlework.tasks.punkt import split
from needlework.tasks.tokenizer import open_tokenizer
from needlework.texts import texts

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    haystack = Haystack.model_validate(s.params.haystack)
    found = texts(haystack.path, haystack.column, haystack.split)
    table = split(found, open_tokenizer(s.params.tokenizer, s.params.revision), s.params.length)
    table.write_parquet(s.output.sentences)
