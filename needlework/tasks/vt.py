"""Variable tracking, as RULER makes it (Hsieh et al., 2024): follow chains of assignments."""

from collections.abc import Callable, Sequence
from random import Random
from string import ascii_uppercase

from needlework.config.tasks import VariableTracking
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.haystacks.haystack import Haystack, HaystackSample, haystack_of
from needlework.tasks.haystacks.needle_insertion import NeedlePlacement, NeedlePrompt
from needlework.tasks.prompts.depth_sampler import RULER_DEPTHS
from needlework.tasks.prompts.token_counter import Counter
from needlework.tasks.seeds import stream_seed

INTRO = "Memorize and track the chain(s) of variable assignment hidden in the following text."
QUESTION = "Question: Find all variables that are assigned the value {value} in the text above."
ANSWER_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count}"
    " variables are assigned the value {value}, they are:"
)
_VALUES = range(10_000, 99_999)
_LETTERS, _EXAMPLE_LETTERS = 5, 3
_EXAMPLE_HOPS = 10
_EXAMPLE_TOKENS = 500
_EXAMPLE_SHARE = 2
"""The example has at most a half of the length: short prompts keep room for their own text."""
_EXAMPLE_STEP = 5


class _Fixed:
    """A haystack that is the same whatever room there is. A haystacks.HaystackSample."""

    def __init__(self, units: list[str], counts: list[int]):
        self.units, self.counts = units, counts

    def take(self, tokens: int) -> tuple[list[str], list[int]]:
        return self.units, self.counts


def drafts(
    task: VariableTracking, counter: Counter, setting: Setting
) -> Callable[[SampleContext], NeedlePrompt]:
    """What makes the draft of a sample.

    The chains of the worked example and of the sample have names and values of their own.
    RULER's blank behind "VAR B = VAR A" is left out: no count adds up across it.
    """
    haystack = haystack_of(task.haystack, counter, setting)
    hay = _example_hay(task, counter, setting, haystack)

    def draft(turn: SampleContext) -> NeedlePrompt:
        random, links = turn.random, task.hops + 1
        values = random.sample(_VALUES, 2 * task.chains)
        example = _example(task, counter, haystack, hay, random, values[task.chains :])
        asked = turn.spread.depths(turn.index, links)
        others = [depth for depth in RULER_DEPTHS if depth not in asked]
        depths = asked + random.sample(others, (task.chains - 1) * links)
        return _hiding(
            counter,
            haystack,
            haystack.start(random),
            _chains(random, _LETTERS, values, depths, links, haystack),
            links,
            intro=f"{example}{INTRO}\n",
        )

    return draft


def _example(
    task: VariableTracking,
    counter: Counter,
    haystack: Haystack,
    hay: HaystackSample,
    random: Random,
    values: Sequence[int],
) -> str:
    """A worked example, its answer and a blank line."""
    links = min(task.hops, _EXAMPLE_HOPS) + 1
    depths = [depth for _ in range(task.chains) for depth in random.sample(RULER_DEPTHS, links)]
    hidden = _chains(random, _EXAMPLE_LETTERS, values, depths, links, haystack)
    prompt = _hiding(counter, haystack, hay, hidden, links, intro=f"{INTRO}\n").build(0)
    answer = " ".join(prompt.outputs)
    return f"{prompt.context}{prompt.question}{prompt.answer_prefix} {answer}\n\n"


def _example_hay(
    task: VariableTracking, counter: Counter, setting: Setting, haystack: Haystack
) -> HaystackSample:
    """The example's haystack: whole units, in steps of five as RULER's, or one alone."""
    random = Random(stream_seed("vt example", *setting.stream))
    hay = haystack.start(random)
    least = _Fixed(*hay.take(0))
    values = random.sample(_VALUES, task.chains)
    used = counter(_example(task, counter, haystack, least, random, values)) - sum(least.counts)
    most = min(_EXAMPLE_TOKENS, setting.length // _EXAMPLE_SHARE)
    units, counts = hay.take(most - used)
    # Never the last: noise may be cut in it.
    whole = (len(units) - 1) // _EXAMPLE_STEP * _EXAMPLE_STEP
    return _Fixed(units[:whole], counts[:whole]) if whole else least


def _hiding(
    counter: Counter,
    haystack: Haystack,
    hay: HaystackSample,
    hidden: list[NeedlePlacement],
    links: int,
    intro: str,
) -> NeedlePrompt:
    """The first chain, of `links` assignments, is asked for."""
    asked = {"value": hidden[0].value, "count": links}
    return NeedlePrompt(
        counter,
        haystack,
        hay,
        hidden,
        intro=intro,
        question=QUESTION.format(**asked),
        answer_prefix=ANSWER_PREFIX.format(**asked),
        outputs=tuple(assignment.key for assignment in hidden[:links]),
    )


def _chains(
    random: Random,
    letters: int,
    values: Sequence[int],
    depths: Sequence[float],
    links: int,
    haystack: Haystack,
) -> list[NeedlePlacement]:
    """Assignments, chain by chain; each chain takes the next `links` depths in order."""
    end = "." if haystack.joiner == " " else ""
    names = _names(random, letters, len(depths))
    hidden = []
    for chain, first in enumerate(range(0, len(depths), links)):
        assigned = str(values[chain])
        for place, depth_percent in enumerate(sorted(depths[first : first + links]), first):
            text = f"VAR {names[place]} = {assigned}{end}"
            hidden.append(NeedlePlacement(text, names[place], assigned, depth_percent))
            assigned = f"VAR {names[place]}"
    return hidden


def _names(random: Random, letters: int, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(random.choices(ascii_uppercase, k=letters))] = None
    return list(names)
