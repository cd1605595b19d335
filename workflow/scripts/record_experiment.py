"""Record the experiment with all defaults filled in, and the software versions."""

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import yaml

from needlework.pipeline.stage import package_versions, stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    document = yaml.safe_dump(s.params.experiment, sort_keys=False, allow_unicode=True)
    Path(s.output.experiment).write_text(document)
    versions = package_versions()
    table = pl.DataFrame({"package": list(versions), "version": list(versions.values())})
    table.write_csv(s.output.software)
