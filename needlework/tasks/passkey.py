"""Task `passkey`: a number hidden in repeated filler (Mohtashami and Jaggi, 2023)."""

from collections.abc import Callable
from random import Random

from needlework.config.tasks.passkey import Passkey, PasskeyTemplates
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.haystacks.answers import occurrences
from needlework.tasks.haystacks.filler import PARAGRAPH, Filler
from needlework.tasks.haystacks.sentence_ends import blank_after
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import TokenCounter
from needlework.tasks.seeds import hash_fraction

INTRO = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them."
    " I will quiz you about the important information there."
)
FILLER = PARAGRAPH
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
ANSWER_PREFIX = " The pass key is"
ENGLISH = PasskeyTemplates(
    intro=INTRO, needle=NEEDLE, question=QUESTION, answer_prefix=ANSWER_PREFIX
)
ANSWER = " {key}"
_LINE_BREAKS = 2


class PasskeyPrompt:
    """A prompt builder: a pass key in as much filler as fits."""

    def __init__(
        self,
        counter: TokenCounter,
        filler: Filler,
        key: str,
        depth_percent: float,
        *,
        templates: PasskeyTemplates = ENGLISH,
        shots: str = "",
        answer: str = "",
    ):
        """`shots` are worked examples before the prompt; the tokens of `answer` count too."""
        self._filler, self._depth_percent, self.key = filler, depth_percent, key
        self._intro = f"{shots}{templates.intro.format()}\n"
        self._needle = f"{templates.needle.format(key=key)}\n"
        self._question, self._prefix = _closing(templates)
        self._head, self._needle_tokens = counter.count_head(self._intro), counter(self._needle)
        self._tail = counter.count_tail(self._question, self._prefix, answer)

    def build(self, max_tokens: int) -> Prompt:
        fixed = self._head + self._needle_tokens + self._tail
        room = max(max_tokens - fixed, self._filler.min_tokens)
        before, before_tokens = self._filler.line_within(room)
        if self._depth_percent < 100:
            target = self._depth_percent / 100 * (room - _LINE_BREAKS)
            before, before_tokens = self._filler.sentences_near(target, max_tokens=room)
        after, after_tokens = self._filler.line_within(room - before_tokens)
        needle = Needle(
            "pass key",
            self.key,
            self._depth_percent,
            character=len(self._intro) + len(before),
            token=self._head + before_tokens,
        )
        return Prompt(
            self._intro + before + self._needle + after,
            self._question,
            self._prefix,
            (self.key,),
            (needle,),
            fixed + before_tokens + after_tokens,
        )

    def answers_elsewhere(self, prompt: Prompt) -> dict[str, int]:
        """How often the key occurs in the context outside its needle."""
        return occurrences(prompt.outputs, prompt.context, [self._needle])


def _closing(templates: PasskeyTemplates) -> tuple[str, str]:
    """Question, and answer prefix with the blank before it."""
    question = templates.question.format()
    return question, blank_after(question) + templates.answer_prefix.format()


def is_evaluation_key(key: str) -> bool:
    """Whether `key` is reserved for evaluation. The other half of all keys is for training."""
    return hash_fraction(f"passkey {key}") < 0.5


def draw_key(random: Random, digits: int, *, evaluation: bool) -> str:
    """Draw an evaluation or training key: a number of `digits` digits without a leading zero."""
    while True:
        key = str(random.randrange(10 ** (digits - 1), 10**digits))
        if is_evaluation_key(key) == evaluation:
            return key


def prepare(
    task: Passkey, counter: TokenCounter, task_context: TaskContext
) -> Callable[[SampleContext], PasskeyPrompt]:
    """Return a function that makes a sample's prompt builder."""
    filler = Filler(counter, " ".join((task.filler or FILLER).split()))
    templates = task.templates or ENGLISH
    if not blank_after(filler.paragraph):
        counter.additive = False

    def prompt_builder(sample: SampleContext) -> PasskeyPrompt:
        random = sample.random
        key = draw_key(random, task.digits, evaluation=not task_context.training)
        (depth_percent,) = sample.depth_sampler.depths(sample.index, 1)
        shots = "".join(
            _worked_example(random, task.digits, key, filler, templates) for _ in range(task.shots)
        )
        return PasskeyPrompt(counter, filler, key, depth_percent, templates=templates, shots=shots)

    return prompt_builder


def _worked_example(
    random: Random, digits: int, exclude: str, filler: Filler, templates: PasskeyTemplates
) -> str:
    """A key other than `exclude` between two paragraphs, with question and answer."""
    key = exclude
    while key == exclude:
        key = draw_key(random, digits, evaluation=True)
    needle, answer = templates.needle.format(key=key), ANSWER.format(key=key)
    lines = [templates.intro.format(), filler.paragraph, needle, filler.paragraph]
    return "\n".join([*lines, f"{''.join(_closing(templates))}{answer}.", "", ""])
