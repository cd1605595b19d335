"""Gates of a frozen model, trained to tell which blocks its own attention looks at."""

from typing import TYPE_CHECKING

from needlework.config.training import Distill
from needlework.pipeline.stage import stage
from needlework.training.distill.gates import distill_checkpoint
from needlework.training.run import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    shape = dict(s.params.gates)
    checkpoints = run(
        distill_checkpoint,
        Distill.model_validate(shape.pop("distill")),
        s.params.checkpoints,
        threads=s.threads,
        fingerprint_inputs={"code": s.params.code, "inputs": s.input_hashes},
        model=s.params.model,
        gates=shape,
        rows=list(s.input.rows),
        seed=s.params.seed,
    )
    s.collect_outputs(checkpoints.product)
checkpoints.remove()
