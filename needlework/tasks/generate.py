"""Samples of any task: a prompt a row, filled to its length."""

from importlib import import_module
from random import Random

import polars as pl
from tokenizers import Tokenizer

from needlework.config.tasks import Task
from needlework.progress import track
from needlework.tasks.fill import Draft, TooLong, fill, least_tokens, smallest_length
from needlework.tasks.prompts import token_position
from needlework.tasks.seeds import stream_seed
from needlework.tasks.tokenizer import uncut

SAMPLES = {
    "task": pl.String,
    "length": pl.Int64,
    "sample": pl.Int64,
    "seed": pl.Int64,
    "context": pl.String,
    "question": pl.String,
    "answer_prefix": pl.String,
    "prompt": pl.String,
    "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
    "outputs": pl.List(pl.String),
    "value_type": pl.String,
    "needles": pl.List(
        pl.Struct(
            {
                "key": pl.String,
                "value": pl.String,
                "depth_percent": pl.Float64,
                "token_position": pl.Int64,
            }
        )
    ),
    "tokens": pl.Int64,
    "max_new_tokens": pl.Int64,
}


def samples(
    task: Task,
    tokenizer: Tokenizer,
    *,
    task_name: str,
    length: int,
    count: int,
    depths: list[float],
    seed: int,
) -> pl.DataFrame:
    """`count` samples of `task`, columns and types as in `SAMPLES`.

    Sample i is drawn from a stream of its own, told by `seed`, the task's parameters, `length` and
    i (the column `seed`), and stands at `depths[i % len(depths)]`: it is the same whatever else is
    asked for. `tokens` counts the whole prompt with the special tokens that the tokenizer adds;
    with `max_new_tokens` it comes to `length` at most. `token_position` is where a needle starts.

    Args:
        task: its parameters; `task.module` names the module here that makes its drafts.
        tokenizer: what lengths are counted in.
        task_name: the task's name in the experiment.
        length: tokens of the prompt and its answer together.
        count: how many samples.
        depths: percent of the haystack before the needle asked for; at least one.
        seed: of the experiment.

    Raises:
        ValueError: the length is too small for the task; the smallest that works is named.
    """
    tokenizer = uncut(tokenizer)
    drafts = import_module(f"needlework.tasks.{task.module}").drafts(task, tokenizer)
    parameters = task.model_dump(mode="json")

    def start(length: int, index: int) -> tuple[int, Draft]:
        sample_seed = stream_seed(seed, parameters, length, index)
        return sample_seed, drafts(Random(sample_seed), float(depths[index % len(depths)]))

    def fits(length: int) -> bool:
        budget = length - task.max_new_tokens
        return all(least_tokens(start(length, i)[1], tokenizer) <= budget for i in range(count))

    rows = []
    for index in track(
        range(count), description=f"{task_name} at {length} tokens", total=count, unit="sample"
    ):
        sample_seed, draft = start(length, index)
        try:
            prompt, encoding = fill(draft, tokenizer, length - task.max_new_tokens)
        except TooLong:
            raise ValueError(
                f"lengths: {length} is too small for task {task_name};"
                f" set {smallest_length(length, fits)} or more"
            ) from None
        rows.append(
            {
                "task": task_name,
                "length": length,
                "sample": index,
                "seed": sample_seed,
                "context": prompt.context,
                "question": prompt.question,
                "answer_prefix": prompt.answer_prefix,
                "prompt": prompt.text,
                "messages": [
                    {"role": "user", "content": prompt.context + prompt.question},
                    {"role": "assistant", "content": prompt.answer_prefix.strip()},
                ],
                "outputs": [prompt.needles[0].value],
                "value_type": "numbers",
                "needles": [
                    {
                        "key": needle.key,
                        "value": needle.value,
                        "depth_percent": needle.depth_percent,
                        "token_position": token_position(encoding, needle),
                    }
                    for needle in prompt.needles
                ],
                "tokens": len(encoding),
                "max_new_tokens": task.max_new_tokens,
            }
        )
    return pl.DataFrame(rows, SAMPLES, orient="row")
