"""Training rows of generated text that states numbers and asks for them again."""

from itertools import islice

import polars as pl
from tokenizers import Tokenizer

from needlework.config.finetune_data import RecallExamples
from needlework.finetune_data.recall_text import recall_text
from needlework.finetune_data.text import SCHEMA
from needlework.runtime.progress import track
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.seeds import stream_seed


def make_examples(config: RecallExamples, tokenizer: Tokenizer, seed: int) -> pl.DataFrame:
    """Generate training rows: input_ids, each an independent text; lengths alternate.

    Args:
        config: parameters of the rows.
        tokenizer: its beginning-of-text token, if it adds one, starts each row.
        seed: the experiment's seed.
    """
    tokenizer, rows = prompt_tokenizer(tokenizer), []
    for number in track(range(config.examples), description="rows of text", unit="row"):
        length = config.lengths[number % len(config.lengths)]
        row_seed = stream_seed(seed, "recall_examples", number)
        sentences = recall_text(row_seed, config.recall_fraction)
        text = ""
        ids: list[int] = []
        while len(ids) < length:
            text += "".join(islice(sentences, length // 16 + 1))
            ids = tokenizer.encode(text).ids
        rows.append(ids[:length])
    return pl.DataFrame({"input_ids": rows}, SCHEMA)
