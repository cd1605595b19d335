"""Answers of one system to all samples, or to a shard of them, by generation or from the store."""

from pathlib import Path
from typing import TYPE_CHECKING

from needlework.evaluation.answer_store import AnswerStore
from needlework.evaluation.cell import shard_of
from needlework.evaluation.generation.job import EvaluationJob, answer_cells
from needlework.pipeline.code_version import modules_version
from needlework.pipeline.stage import stage
from needlework.tables import skipped

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

GENERATION = (
    "needlework.evaluation.generation.generate",
    "needlework.models.checkpoint",
    "needlework.models.convert",
)

with stage(snakemake) as s:
    job = EvaluationJob.of(s.wildcards.system, s.params)
    weights = {Path(p).name: s.input_hashes[p] for p in (*s.input.model, *s.input.gates)}
    code = modules_version(*GENERATION, *s.params.attention_modules)
    label = {"experiment": s.params.experiment, "system": job.system, "model": job.model.path}
    store = AnswerStore(s.params.store, job.facts(weights, code, s.threads), label)
    shard, shards = int(s.wildcards.get("shard", 0)), s.params.shards
    cells = shard_of(s.input.samples, shard, shards, whole_tasks=job.stop_rule is not None)
    tables, skipped_cells = answer_cells(job, cells, store, s.threads)
    for name, table in tables._asdict().items():
        skipped.write(table, getattr(s.output, name), skipped_cells)
    s.notes["answers"] = {"store": str(store.folder), "generated": store.added}
