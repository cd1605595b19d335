"""Generate samples with needlework. Arguments: task, tokens, samples."""

import sys

from pydantic import TypeAdapter

from needlework.config.tasks.registry import AnyTask
from needlework.tasks.generate import Sampler, write_samples
from needlework.tasks.prompts.tokenizer import open_tokenizer

task, length, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sampler = Sampler(
    TypeAdapter(AnyTask).validate_python({"type": task}),
    open_tokenizer("tokenizer"),
    task_name=task,
    length=length,
    depths=[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
    seed=42,
)
write_samples(sampler, count, f"own-{task}-{length}.parquet")
