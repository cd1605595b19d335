"""Export training rows as a folder that `datasets.load_from_disk` opens."""

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from needlework.pipeline.stage import stage
from needlework.tasks.formats.dataset import export_dataset

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s, TemporaryDirectory() as folder:
    export_dataset(s.input.rows, folder)
    s.collect_outputs(folder)
