"""Export one system's answers to one task at one length as RULER's JSON lines."""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from needlework.config.models.thought import ThoughtFormat
from needlework.pipeline.stage import stage
from needlework.tasks.formats.ruler_export import export_ruler

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    thought = TypeAdapter(ThoughtFormat | None).validate_python(s.params.thought_format)
    export_ruler(s.input.samples, s.input.predictions, s.output.data, s.output.answers, thought)
