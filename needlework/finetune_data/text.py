"""Training rows from the user's text, packed without gaps."""

import logging
from collections.abc import Iterator

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from needlework.config.finetune_data import TextExamples
from needlework.runtime.progress import track
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.sources.control_tokens import describe, special_token_pattern, spelled_tokens
from needlework.sources.texts import read_documents

_log = logging.getLogger(__name__)
SCHEMA = {"input_ids": pl.List(pl.Int32)}


def make_examples(
    config: TextExamples, tokenizer: Tokenizer, seed: int, *, end: int
) -> pl.DataFrame:
    """Cut the tokens of consecutive documents into rows: input_ids; several lengths alternate.

    Each row continues where the previous one ends. Reads only as much text as the rows need.
    `seed` has no effect.

    Args:
        config: parameters of the rows.
        tokenizer: its beginning-of-text token, if it adds one, starts each document.
        seed: the experiment's seed.
        end: id of the token that ends each document.

    Raises:
        ValueError: see `read_documents`; there is too little text.
    """
    lengths = config.lengths
    rows, row, filled = [], np.empty(lengths[0], np.int32), 0
    with track(description="rows of text", total=config.examples, unit="row") as progress:
        encoder = prompt_tokenizer(tokenizer, config.special_tokens)
        for ids in _token_ids(config, encoder, end):
            while len(ids):
                taken = min(len(ids), len(row) - filled)
                row[filled : filled + taken] = ids[:taken]
                ids, filled = ids[taken:], filled + taken
                if filled < len(row):
                    continue
                rows.append(row)
                progress.update()
                if len(rows) == config.examples:
                    return pl.DataFrame({"input_ids": rows}, SCHEMA)
                row, filled = np.empty(lengths[len(rows) % len(lengths)], np.int32), 0
    if not rows:
        raise ValueError(
            f"{config.path}: its text has {filled} tokens, fewer than one row of length "
            f"{lengths[0]}; add text, or write a smaller length"
        )
    raise ValueError(
        f"{config.path}: its text fills only {len(rows)} of {config.examples} rows; "
        f"write examples: {len(rows)}, or add text"
    )


def _token_ids(config: TextExamples, tokenizer: Tokenizer, end: int) -> Iterator[np.ndarray]:
    """Token ids of the documents in pieces, int32; `end` follows each document."""
    pattern, is_warned = special_token_pattern(tokenizer), False
    for document in read_documents(config.path, config.column, config.split):
        for number, part in enumerate(document):
            if not is_warned and (spelled := spelled_tokens(pattern, part)):
                _log.warning("%s: %s", config.path, describe(spelled, config.special_tokens))
                is_warned = True
            ids = tokenizer.encode(part, add_special_tokens=number == 0).ids
            yield np.array(ids, np.int32)
        yield np.array([end], np.int32)
