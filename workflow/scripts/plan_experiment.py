"""What the experiment costs, before any weight is loaded: a row a system and length."""

from typing import TYPE_CHECKING

from needlework.config.devices import devices
from needlework.config.experiment import Experiment
from needlework.pipeline.stage import stage
from needlework.planning.plan import plan

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    experiment = Experiment.model_validate(s.params.experiment)
    plan(experiment, devices()[experiment.device]).write_csv(s.output.csv, float_precision=6)
