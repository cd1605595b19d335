"""Training rows from a table of the user's."""

import logging
from collections import Counter

import polars as pl
from tokenizers import Tokenizer

from needlework.config.finetune_data import RowExamples
from needlework.finetune_data.answers import END_TOKENS
from needlework.runtime.progress import track
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.sources.control_tokens import describe, special_token_pattern, spelled_tokens
from needlework.sources.texts import read_pairs

_log = logging.getLogger(__name__)
SCHEMA = {
    "prompt": pl.String,
    "answer": pl.String,
    "context_length": pl.Int64,
    "special_tokens": pl.String,
}


def make_examples(config: RowExamples, tokenizer: Tokenizer, seed: int) -> pl.DataFrame:
    """Read the first training rows of a table in order, columns as in SCHEMA.

    `context_length` counts the tokens of prompt, answer and end-of-text token; prompt and answer
    are tokenized separately, as in training. `seed` has no effect.

    Raises:
        ValueError: see `read_pairs`; a row has more than `config.length` tokens; the table has
            fewer rows than `config.examples`.
    """
    pattern, spelled = special_token_pattern(tokenizer), Counter[str]()
    tokenizer = prompt_tokenizer(tokenizer, config.special_tokens)
    rows: list[tuple[str, str, int, str]] = []
    pairs = read_pairs(config.path, (config.prompt_column, config.answer_column), config.split)
    with track(description="rows", total=config.examples, unit="row") as progress:
        for prompt, answer in pairs:
            if len(rows) == config.examples:
                break
            parts = (tokenizer.encode(prompt), tokenizer.encode(answer, add_special_tokens=False))
            tokens = sum(map(len, parts)) + END_TOKENS
            if tokens > config.length:
                raise ValueError(
                    f"{config.path}: row {len(rows)} has {tokens} tokens with answer and "
                    f"end-of-text, more than length: {config.length}; write length: {tokens} or "
                    "more, or shorten the row"
                )
            spelled += spelled_tokens(pattern, prompt) + spelled_tokens(pattern, answer)
            rows.append((prompt, answer, tokens, config.special_tokens))
            progress.update()
    if not rows or len(rows) < (config.examples or 0):
        raise ValueError(
            f"{config.path}: has {len(rows)} rows, fewer than examples: {config.examples or 1}; "
            f"write examples: {len(rows) or 'null'}, or the path of a table with more rows"
        )
    if spelled:
        _log.warning("%s: %s", config.path, describe(spelled, config.special_tokens))
    return pl.DataFrame(rows, SCHEMA, orient="row")
