"""Rows to train on from text of the user's, packed without gaps."""

from collections.abc import Iterator

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from needlework.config.tasks import TextExamples
from needlework.runtime.progress import track
from needlework.sources.texts import documents
from needlework.tasks.prompts.tokenizer import uncut

EXAMPLES = {"input_ids": pl.List(pl.Int32)}


def examples(config: TextExamples, tokenizer: Tokenizer, seed: int, *, end: int) -> pl.DataFrame:
    """Rows to train on: input_ids, each of one of the lengths, which take turns.

    One row goes on where the one before stops. No more of the source is read than the rows take,
    and no more of it held. No seed decides anything.

    Args:
        config: the rows asked for.
        tokenizer: what it puts around a text (a beginning-of-text token) begins each document.
        seed: of the experiment.
        end: the token that ends each document.

    Raises:
        ValueError: as `texts.documents`; there is too little text.
    """
    lengths = config.lengths
    rows, row, filled = [], np.empty(lengths[0], np.int32), 0
    with track(description="rows of text", total=config.examples, unit="row") as bar:
        for piece in _pieces(config, uncut(tokenizer), end):
            while len(piece):
                taken = min(len(piece), len(row) - filled)
                row[filled : filled + taken] = piece[:taken]
                piece, filled = piece[taken:], filled + taken
                if filled < len(row):
                    continue
                rows.append(row)
                bar.update()
                if len(rows) == config.examples:
                    return pl.DataFrame({"input_ids": rows}, EXAMPLES)
                row, filled = np.empty(lengths[len(rows) % len(lengths)], np.int32), 0
    if not rows:
        raise ValueError(
            f"{config.path}: its text has {filled} tokens, fewer than a row of length "
            f"{lengths[0]}; name more text, or write a smaller length"
        )
    raise ValueError(
        f"{config.path}: its text fills {len(rows)} rows and {config.examples} are asked for; "
        f"write examples: {len(rows)}, or name more text"
    )


def _pieces(config: TextExamples, tokenizer: Tokenizer, end: int) -> Iterator[np.ndarray]:
    """Token ids of the documents, one after the other, each with its end."""
    for document in documents(config.path, config.column, config.split):
        ids = []
        for number, part in enumerate(document):
            ids = tokenizer.encode(part, add_special_tokens=number == 0).ids
            yield np.array(ids, np.int32)
        # Some tokenizers put it there themselves.
        if ids[-1:] != [end]:
            yield np.array([end], np.int32)
