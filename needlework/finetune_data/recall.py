"""Rows to train on from generated text that tells numbers and asks for them."""

from itertools import islice

import polars as pl
from tokenizers import Tokenizer

from needlework.config.tasks import RecallExamples
from needlework.finetune_data.recall_text import recall_text
from needlework.finetune_data.text import EXAMPLES
from needlework.runtime.progress import track
from needlework.tasks.prompts.tokenizer import uncut
from needlework.tasks.seeds import stream_seed


def examples(config: RecallExamples, tokenizer: Tokenizer, seed: int) -> pl.DataFrame:
    """Rows to train on: input_ids, each a text of its own, of one of the lengths in turn.

    Args:
        config: the rows asked for.
        tokenizer: what it puts around a text (a beginning-of-text token) begins each row.
        seed: of the experiment.
    """
    tokenizer, rows = uncut(tokenizer), []
    for number in track(range(config.examples), description="rows of text", unit="row"):
        length = config.lengths[number % len(config.lengths)]
        sentences = recall_text(
            stream_seed(seed, "recall_examples", number), config.recall_fraction
        )
        text, ids = "", []
        while len(ids) < length:
            text += "".join(islice(sentences, length // 16 + 1))
            ids = tokenizer.encode(text).ids
        rows.append(ids[:length])
    return pl.DataFrame({"input_ids": rows}, EXAMPLES)
