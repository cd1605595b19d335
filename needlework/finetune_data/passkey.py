"""Training rows of the passkey task."""

from itertools import product
from random import Random

import polars as pl
from tokenizers import Tokenizer

from needlework.config.finetune_data import PasskeyExamples
from needlework.finetune_data.answers import END_TOKENS
from needlework.runtime.progress import track
from needlework.tasks.haystacks.filler import Filler
from needlework.tasks.passkey import ANSWER, PasskeyPrompt, draw_key
from needlework.tasks.prompts.budget import (
    BudgetTooSmall,
    fit_prompt,
    shortest_tokens,
    smallest_length,
)
from needlework.tasks.prompts.token_counter import TokenCounter
from needlework.tasks.seeds import stream_seed

SCHEMA = {
    "prompt": pl.String,
    "answer": pl.String,
    "context_length": pl.Int64,
    "depth_percent": pl.Float64,
    "num_digits": pl.Int64,
    "seed": pl.Int64,
}


def make_examples(config: PasskeyExamples, tokenizer: Tokenizer, seed: int) -> pl.DataFrame:
    """Generate training rows, columns as in SCHEMA.

    `context_length` counts the tokens of prompt and answer (a space and the key), special tokens
    included, plus the end-of-text token that training appends. It is at most `config.length`, and
    equal to it wherever the filler can be cut to fit; several lengths alternate. At each length
    all pairs of depth and number of digits are equally frequent. Row i does not depend on the
    number of rows.

    Raises:
        ValueError: the length is too small; the message names the smallest that works.
    """
    counter = TokenCounter(tokenizer)
    filler = Filler(counter)
    cells = list(product(config.depths, config.digits))
    parameters = config.model_dump(mode="json", exclude={"examples", "length"})

    def start_row(length: int, index: int) -> tuple[int, PasskeyPrompt, str]:
        """The row's seed, prompt builder and answer."""
        depth_percent, digits = cells[index % len(cells)]
        row_seed = stream_seed("passkey examples", seed, parameters, length, index)
        key = draw_key(Random(row_seed), digits, evaluation=False)
        answer = ANSWER.format(key=key)
        return row_seed, PasskeyPrompt(counter, filler, key, depth_percent, answer=answer), answer

    def required_length(length: int) -> int:
        started = (start_row(length, index) for index in range(config.examples))
        return END_TOKENS + max(
            shortest_tokens(builder, counter, answer) for _, builder, answer in started
        )

    rows = []
    for i in track(range(config.examples), description="passkey examples", unit="row"):
        index, length_index = divmod(i, len(config.lengths))
        length = config.lengths[length_index]
        row_seed, builder, answer = start_row(length, index)
        try:
            prompt = fit_prompt(builder, counter, length - END_TOKENS, answer)
        except BudgetTooSmall:
            raise ValueError(
                f"passkey examples: length {length} is too small;"
                f" write {smallest_length(length, required_length)} or more"
            ) from None
        (needle,) = prompt.needles
        text = counter.chat_frame.text(prompt)
        tokens = counter.count_prompt(prompt, answer) + END_TOKENS
        rows.append((text, answer, tokens, needle.depth_percent, len(builder.key), row_seed))
    return pl.DataFrame(rows, SCHEMA, orient="row")
