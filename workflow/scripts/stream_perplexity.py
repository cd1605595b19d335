"""Perplexity of one system along one shard of a stream."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import TypeAdapter

from needlework.config.attention.registry import AnyAttention
from needlework.config.opening import ModelSpec
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.evaluator import StreamingEvaluator
from needlework.evaluation.streaming.tables import stream_tables
from needlework.evaluation.streaming.token_source import TokenFile
from needlework.models.checkpoint import open_model
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    torch.set_num_threads(s.threads)
    model, _ = open_model(ModelSpec.model_validate(s.params.model))
    evaluator = StreamingEvaluator(
        model,
        **s.params.settings,
        attention=TypeAdapter(AnyAttention | None).validate_python(s.params.attention),
    )
    checkpoint = StreamCheckpoint(s.checkpoint_path("state"), s.key)
    starts = np.load(s.input.starts)
    chunks, positions, measurements = stream_tables(
        evaluator,
        TokenFile(s.input.tokens, starts=starts),
        system=s.wildcards.system,
        stream=s.wildcards.stream,
        shard=int(s.wildcards.shard),
        checkpoint=checkpoint,
        sizes=np.load(s.input.sizes, mmap_mode="r"),
        starts=starts,
    )
    chunks.write_parquet(s.output.chunks)
    positions.write_parquet(s.output.positions)
    measurements.write_parquet(s.output.measurements)
    checkpoint.path.unlink(missing_ok=True)
