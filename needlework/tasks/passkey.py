"""Passkey retrieval: a number hidden in repeated filler (Mohtashami and Jaggi, 2023)."""

from collections.abc import Callable
from random import Random

from needlework.config.tasks import Passkey
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.haystacks.filler import PARAGRAPH, Filler
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import Counter
from needlework.tasks.seeds import share

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


def drafts(task: Passkey, counter: Counter, setting: Setting) -> Callable[[SampleContext], Draft]:
    """What makes the draft of a sample."""
    filler = Filler(counter, " ".join((task.filler or FILLER).split()))

    def draft(turn: SampleContext) -> Draft:
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
