"""Export one system's answers to one task at one length as RULER's JSON lines."""

from typing import TYPE_CHECKING

from needlework.pipeline.stage import stage
from needlework.tasks.formats.ruler_export import export_ruler

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    export_ruler(s.input.samples, s.input.predictions, s.output.data, s.output.answers)
