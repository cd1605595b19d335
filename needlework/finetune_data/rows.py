"""Rows to train on from a table of the user's."""

import polars as pl
from tokenizers import Tokenizer

from needlework.config.tasks import RowExamples
from needlework.finetune_data.answers import END_TOKENS
from needlework.runtime.progress import track
from needlework.sources.texts import pairs
from needlework.tasks.prompts.tokenizer import uncut

EXAMPLES = {"prompt": pl.String, "answer": pl.String, "context_length": pl.Int64}


def examples(config: RowExamples, tokenizer: Tokenizer, seed: int) -> pl.DataFrame:
    """Rows to train on: prompt, answer, context_length; the first of the table, in its order.

    `context_length` counts the tokens of prompt, answer and end as training has them, each
    tokenized apart. No seed decides anything.

    Raises:
        ValueError: as `texts.pairs`; a row of more than `config.length` tokens; fewer rows than
            `config.examples`.
    """
    tokenizer, rows = uncut(tokenizer), []
    found = pairs(config.path, (config.prompt_column, config.answer_column), config.split)
    with track(description="rows", total=config.examples, unit="row") as bar:
        for prompt, answer in found:
            if len(rows) == config.examples:
                break
            parts = (tokenizer.encode(prompt), tokenizer.encode(answer, add_special_tokens=False))
            size = sum(map(len, parts)) + END_TOKENS
            if size > config.length:
                raise ValueError(
                    f"{config.path}: row {len(rows)} has {size} tokens with its answer and end, "
                    f"more than length: {config.length}; write length: {size} or more, or shorten "
                    "the row"
                )
            rows.append((prompt, answer, size))
            bar.update()
    if not rows or len(rows) < (config.examples or 0):
        wanted = config.examples or "some"
        raise ValueError(
            f"{config.path}: has {len(rows)} rows and {wanted} are asked for; write "
            f"examples: {len(rows) or 'null'}, or name a table with more"
        )
    return pl.DataFrame(rows, EXAMPLES, orient="row")
