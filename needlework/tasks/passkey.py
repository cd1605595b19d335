"""Passkey retrieval: a number hidden in repeated filler (Mohtashami and Jaggi, 2023)."""

from collections.abc import Callable
from itertools import product
from random import Random

import polars as pl
from tokenizers import Tokenizer

from needlework.config.tasks import Passkey, PasskeyExamples
from needlework.progress import track
from needlework.tasks.fill import TooLong, fill, least_tokens, smallest_length
from needlework.tasks.filler import PARAGRAPH, Filler
from needlework.tasks.prompts import Needle, Prompt
from needlework.tasks.seeds import share, stream_seed
from needlework.tasks.tokenizer import uncut

INTRO = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them."
    " I will quiz you about the important information there."
)
FILLER = PARAGRAPH
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
ANSWER_PREFIX = " The pass key is"
ANSWER = " {key}"
END_TOKENS = 1
"""The end-of-sequence token that training puts behind an answer."""
EXAMPLES = {
    "prompt": pl.String,
    "answer": pl.String,
    "context_length": pl.Int64,
    "depth_percent": pl.Float64,
    "num_digits": pl.Int64,
    "seed": pl.Int64,
}


class Draft:
    """A passkey prompt of any length. A unit is a token of filler, the last of it cut to fit."""

    def __init__(self, filler: Filler, key: str, depth_percent: float):
        self._filler, self.key, self._depth_percent = filler, key, depth_percent
        self.least = filler.paragraph_tokens

    def build(self, units: int) -> Prompt:
        before = units
        if self._depth_percent < 100:
            before = self._filler.sentence_end(self._depth_percent / 100 * units, most=units)
        head = "".join(f"{text}\n" for text in (INTRO, self._filler.text(before)) if text)
        tail = "".join(
            f"{text}\n"
            for text in (NEEDLE.format(key=self.key), self._filler.text(units - before))
            if text
        )
        needle = Needle("pass key", self.key, self._depth_percent, position=len(head))
        return Prompt(head + tail, QUESTION, ANSWER_PREFIX, (needle,))

    def move(self, units: int, gap: int) -> tuple[int, int]:
        return units + gap, 0


def is_evaluation_key(key: str) -> bool:
    """Whether `key` is kept for evaluation; the other half of all keys is for training."""
    return share(f"passkey {key}") < 0.5


def draw_key(random: Random, digits: int, *, evaluation: bool) -> str:
    """A number of `digits` digits, no zero first, from the keys of evaluation or of training."""
    while True:
        key = str(random.randrange(10 ** (digits - 1), 10**digits))
        if is_evaluation_key(key) == evaluation:
            return key


def drafts(task: Passkey, tokenizer: Tokenizer) -> Callable[[Random, float], Draft]:
    """What makes a draft from a sample's random stream and depth in percent."""
    filler = Filler(tokenizer, FILLER, joiner=" ")

    def draft(random: Random, depth_percent: float) -> Draft:
        return Draft(filler, draw_key(random, task.digits, evaluation=True), depth_percent)

    return draft


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
    tokenizer = uncut(tokenizer)
    filler = Filler(tokenizer, FILLER, joiner=" ")
    cells = list(product(config.depths, config.digits))
    parameters = config.model_dump(mode="json", exclude={"examples", "length"})

    def start(length: int, index: int) -> tuple[int, Draft, str]:
        depth_percent, digits = cells[index % len(cells)]
        row_seed = stream_seed("passkey examples", seed, parameters, length, index)
        key = draw_key(Random(row_seed), digits, evaluation=False)
        return row_seed, Draft(filler, key, depth_percent), ANSWER.format(key=key)

    def fits(length: int) -> bool:
        started = (start(length, index) for index in range(config.examples))
        return all(
            least_tokens(draft, tokenizer, answer) + END_TOKENS <= length
            for _, draft, answer in started
        )

    rows = []
    for i in track(range(config.examples), description="passkey examples", unit="row"):
        index, turn = divmod(i, len(config.lengths))
        length = config.lengths[turn]
        row_seed, draft, answer = start(length, index)
        try:
            prompt, encoding = fill(draft, tokenizer, length - END_TOKENS, answer)
        except TooLong:
            raise ValueError(
                f"passkey examples: length {length} is too small;"
                f" set it to {smallest_length(length, fits)} or more"
            ) from None
        (needle,) = prompt.needles
        size = len(encoding) + END_TOKENS
        rows.append((prompt.text, answer, size, needle.depth_percent, len(draft.key), row_seed))
    return pl.DataFrame(rows, EXAMPLES, orient="row")
