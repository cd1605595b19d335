"""Training rows of any task: samples with their answers, from separate random streams."""

from collections.abc import Mapping
from typing import Literal

import polars as pl
from tokenizers import Tokenizer

from needlework.config.finetune_data import TaskExamples
from needlework.config.tasks.base import Task
from needlework.finetune_data.answers import END_TOKENS
from needlework.runtime.progress import track
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.generate import Sampler

SCHEMA = {
    "prompt": pl.String,
    "answer": pl.String,
    "context_length": pl.Int64,
    "seed": pl.Int64,
    "special_tokens": pl.String,
}


def make_examples(
    config: TaskExamples,
    tokenizer: Tokenizer,
    seed: int,
    *,
    task: Task,
    depths: list[float] | Literal["uniform"],
    haystacks: Mapping[int, pl.DataFrame],
) -> pl.DataFrame:
    """Generate training rows, columns as in SCHEMA.

    The answer is a space and the sample's outputs, separated by commas. `context_length` counts
    the tokens of prompt, answer and end-of-text token; the length leaves room for the task's
    longest answer. Several lengths alternate. Row i does not depend on the number of rows, and no
    row uses the random stream of an evaluation sample.

    Args:
        config: parameters of the rows.
        tokenizer: the tokenizer that lengths are measured in.
        seed: the experiment's seed.
        task: parameters of the task that `config.task` names.
        depths: the experiment's depths.
        haystacks: sentences of the user's haystack text by length, if the task uses one.

    Raises:
        ValueError: see Sampler.
    """
    samplers = [
        Sampler(
            task,
            tokenizer,
            task_name=config.task,
            length=length,
            depths=depths,
            seed=seed,
            haystack=haystacks.get(length),
            training=True,
        )
        for length in config.lengths
    ]
    rows, encode = [], prompt_tokenizer(tokenizer, task.special_tokens).encode
    for i in track(range(config.examples), description=f"{config.task} examples", unit="row"):
        index, sampler_index = divmod(i, len(samplers))
        sample = samplers[sampler_index].sample(index)
        answer = f" {', '.join(sample['outputs'])}"
        answer_tokens = len(encode(answer, add_special_tokens=False))
        tokens = sample["tokens"] + answer_tokens + END_TOKENS
        rows.append((sample["prompt"], answer, tokens, sample["seed"], task.special_tokens))
    return pl.DataFrame(rows, SCHEMA, orient="row")
