"""Fine-tune a model of the experiment, after converting its attention if requested."""

from typing import TYPE_CHECKING

from needlework.config.training import Finetune
from needlework.pipeline.stage import stage
from needlework.training.finetune import finetune_checkpoint
from needlework.training.run import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    recipe = Finetune.model_validate(s.params.finetune)
    checkpoints = run(
        finetune_checkpoint,
        recipe,
        s.params.checkpoints,
        threads=s.threads,
        fingerprint_inputs={"code": s.params.code, "inputs": s.input_hashes},
        model=s.params.model,
        attention=s.params.attention,
        rows=dict(zip(recipe.data_weights, s.input.rows, strict=True)),
        seed=s.params.seed,
        validation=s.params.validation,
    )
    s.collect_outputs(checkpoints.product)
checkpoints.remove()
