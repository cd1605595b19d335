"""Rows to train on from any task: samples with their answers, from random streams of their own."""

from collections.abc import Mapping

import polars as pl
from tokenizers import Tokenizer

from needlework.config.tasks import Task, TaskExamples
from needlework.finetune_data.answers import END_TOKENS
from needlework.runtime.progress import track
from needlework.tasks.generate import Sampler
from needlework.tasks.prompts.tokenizer import uncut

EXAMPLES = {
    "prompt": pl.String,
    "answer": pl.String,
    "context_length": pl.Int64,
    "seed": pl.Int64,
}


def examples(
    config: TaskExamples,
    tokenizer: Tokenizer,
    seed: int,
    *,
    task: Task,
    depths: list[float] | str,
    haystacks: Mapping[int, pl.DataFrame],
) -> pl.DataFrame:
    """Rows to train on: prompt, answer, context_length, seed.

    The answer is a space and the sample's outputs, with commas between. `context_length` counts the
    tokens of prompt, answer and the end that training adds; within the length there is room for the
    task's longest answer. Lengths take turns where there are several. Row i is the same however
    many are asked for, and none is drawn as a sample of an evaluation is.

    Args:
        config: the rows asked for.
        tokenizer: what tokens are counted in.
        seed: of the experiment.
        task: the parameters of the task that config names.
        depths: the experiment's.
        haystacks: by length, the text that the task's haystack names, if it is the user's.

    Raises:
        ValueError: as Sampler.
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
    rows, encode = [], uncut(tokenizer).encode
    for i in track(range(config.examples), description=f"{config.task} examples", unit="row"):
        index, turn = divmod(i, len(samplers))
        row = samplers[turn].sample(index)
        answer = f" {', '.join(row['outputs'])}"
        size = row["tokens"] + len(encode(answer, add_special_tokens=False)) + END_TOKENS
        rows.append((row["prompt"], answer, size, row["seed"]))
    return pl.DataFrame(rows, EXAMPLES, orient="row")
