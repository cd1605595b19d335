"""Passkey rows to train on."""

from itertools import product
from random import Random

import polars as pl
from tokenizers import Tokenizer

from needlework.config.tasks import PasskeyExamples
from needlework.finetune_data.answers import END_TOKENS
from needlework.runtime.progress import track
from needlework.tasks.haystacks.filler import Filler
from needlework.tasks.passkey import ANSWER, Draft, draw_key
from needlework.tasks.prompts.budget import (
    TooLong,
    fill,
    least_tokens,
    smallest_length,
    text_of,
)
from needlework.tasks.prompts.token_counter import Counter
from needlework.tasks.prompts.tokenizer import uncut
from needlework.tasks.seeds import stream_seed

EXAMPLES = {
    "prompt": pl.String,
    "answer": pl.String,
    "context_length": pl.Int64,
    "depth_percent": pl.Float64,
    "num_digits": pl.Int64,
    "seed": pl.Int64,
}


def examples(config: PasskeyExamples, tokenizer: Tokenizer, seed: int) -> pl.DataFrame:
    """Rows to train on: prompt, answer, context_length, depth_percent, num_digits, seed.

    `context_length` counts the tokens of prompt and answer (a space and the key), special tokens
    included, and one for the end-of-sequence token that training adds: at most `config.length`
    (its entries take turns where it has several), and equal to it wherever a cut of the filler
    makes it so. Every pair of a depth and a number of digits comes up equally often at each
    length. Row i is the same however many are asked for.

    Raises:
        ValueError: the length is too small; the smallest that works is named.
    """
    counter = Counter(uncut(tokenizer))
    filler = Filler(counter)
    cells = list(product(config.depths, config.digits))
    parameters = config.model_dump(mode="json", exclude={"examples", "length"})

    def start(length: int, index: int) -> tuple[int, Draft, str]:
        depth_percent, digits = cells[index % len(cells)]
        row_seed = stream_seed("passkey examples", seed, parameters, length, index)
        key = draw_key(Random(row_seed), digits, evaluation=False)
        answer = ANSWER.format(key=key)
        return row_seed, Draft(counter, filler, key, depth_percent, answer=answer), answer

    def needed(length: int) -> int:
        started = (start(length, index) for index in range(config.examples))
        return END_TOKENS + max(
            least_tokens(draft, counter, answer) for _, draft, answer in started
        )

    rows = []
    for i in track(range(config.examples), description="passkey examples", unit="row"):
        index, turn = divmod(i, len(config.lengths))
        length = config.lengths[turn]
        row_seed, draft, answer = start(length, index)
        try:
            prompt = fill(draft, counter, length - END_TOKENS, answer)
        except TooLong:
            raise ValueError(
                f"passkey examples: length {length} is too small;"
                f" set it to {smallest_length(length, needed)} or more"
            ) from None
        (needle,) = prompt.needles
        size = counter.whole(text_of(prompt, counter) + answer) + END_TOKENS
        rows.append(
            (text_of(prompt, counter), answer, size, needle.depth_percent, len(draft.key), row_seed)
        )
    return pl.DataFrame(rows, EXAMPLES, orient="row")
