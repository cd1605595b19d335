"""A small model and its tokenizer, from nothing."""

from typing import TYPE_CHECKING

from needlework.config.training import Pretrain
from needlework.pipeline.stage import stage
from needlework.training.pretrain import pretrain_model
from needlework.training.run import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    checkpoints = run(
        pretrain_model,
        Pretrain.model_validate(s.params.pretrain),
        s.params.checkpoints,
        threads=s.threads,
        fingerprint_inputs={"code": s.params.code},
        seed=s.params.seed,
        validation=s.params.validation,
    )
    s.collect_outputs(checkpoints.product)
checkpoints.remove()
