"""Passkey retrieval: a number hidden in repeated filler (Mohtashami and Jaggi, 2023)."""

from collections.abc import Callable
from itertools import product
from random import Random

import polars as pl
from tokenizers import Tokenizer

from needlework.config.tasks import Passkey, PasskeyExamples
from needlework.progress import track
from needlework.tasks.counting import Counter
from needlework.tasks.fill import TooLong, fill, least_tokens, smallest_length, text_of
from needlework.tasks.filler import PARAGRAPH, Filler
from needlework.tasks.prompts import Needle, Prompt
from needlework.tasks.seeds import share, stream_seed
from needlework.tasks.setting import Setting, Turn
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
_LINE_BREAKS = 2
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
    """A pass key in as much filler as fits, `answer` behind the prompt counted. A fill.Draft."""

    def __init__(
        self,
        counter: Counter,
        filler: Filler,
        key: str,
        depth_percent: float,
        *,
        shots: str = "",
        answer: str = "",
    ):
        """`shots` are worked examples, each a prompt and its answer, put before."""
        self._filler, self._depth_percent, self.key = filler, depth_percent, key
        self._intro = f"{shots}{INTRO}\n"
        self._needle = f"{NEEDLE.format(key=key)}\n"
        self._head, self._needle_tokens = counter.head(self._intro), counter(self._needle)
        self._tail = counter.tail(QUESTION, ANSWER_PREFIX, answer)

    def build(self, tokens: int) -> Prompt:
        fixed = self._head + self._needle_tokens + self._tail
        room = max(tokens - fixed, self._filler.least_tokens)
        before, used = self._filler.running(room)
        if self._depth_percent < 100:
            near = self._depth_percent / 100 * (room - _LINE_BREAKS)
            before, used = self._filler.running_sentences(near, most=room)
        after, rest = self._filler.running(room - used)
        needle = Needle(
            "pass key",
            self.key,
            self._depth_percent,
            character=len(self._intro) + len(before),
            token=self._head + used,
        )
        return Prompt(
            self._intro + before + self._needle + after,
            QUESTION,
            ANSWER_PREFIX,
            (self.key,),
            (needle,),
            fixed + used + rest,
        )


def is_evaluation_key(key: str) -> bool:
    """Whether `key` is kept for evaluation; the other half of all keys is for training."""
    return share(f"passkey {key}") < 0.5


def draw_key(random: Random, digits: int, *, evaluation: bool) -> str:
    """A number of `digits` digits, no zero first, from the keys of evaluation or of training."""
    while True:
        key = str(random.randrange(10 ** (digits - 1), 10**digits))
        if is_evaluation_key(key) == evaluation:
            return key


def drafts(task: Passkey, counter: Counter, setting: Setting) -> Callable[[Turn], Draft]:
    """What makes the draft of a sample."""
    filler = Filler(counter, " ".join((task.filler or FILLER).split()))

    def draft(turn: Turn) -> Draft:
        key = draw_key(turn.random, task.digits, evaluation=not setting.training)
        (depth_percent,) = turn.spread.depths(turn.index, 1)
        shots = "".join(_shot(turn.random, task.digits, key, filler) for _ in range(task.shots))
        return Draft(counter, filler, key, depth_percent, shots=shots)

    return draft


def _shot(random: Random, digits: int, but: str, filler: Filler) -> str:
    """A worked example: the key between two paragraphs, and the answer."""
    key = but
    while key == but:
        key = draw_key(random, digits, evaluation=True)
    lines = [INTRO, filler.paragraph, NEEDLE.format(key=key), filler.paragraph]
    return "\n".join([*lines, f"{QUESTION}{ANSWER_PREFIX}{ANSWER.format(key=key)}.", "", ""])


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
