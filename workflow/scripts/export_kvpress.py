"""Export the samples of one task at one length as a table that kvpress reads."""

from typing import TYPE_CHECKING

from needlework.pipeline.stage import stage
from needlework.tasks.formats.kvpress import export_kvpress

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    export_kvpress(s.input.samples, s.output.table)
