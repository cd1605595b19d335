"""RULER's variable tracking (Hsieh et al., 2024): follow chains of assignments."""

from collections.abc import Callable, Sequence
from random import Random
from string import ascii_uppercase

from needlework.config.tasks.vt import VariableTracking, VariableTrackingTemplates
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.haystacks.haystack import Haystack, HaystackSample, make_haystack
from needlework.tasks.haystacks.needle_insertion import NeedlePlacement, NeedlePrompt
from needlework.tasks.haystacks.sentence_ends import blank_after
from needlework.tasks.prompts.depth_sampler import RULER_DEPTHS
from needlework.tasks.prompts.token_counter import TokenCounter
from needlework.tasks.seeds import stream_seed

ENGLISH = VariableTrackingTemplates(
    intro="Memorize and track the chain(s) of variable assignment hidden in the following text.",
    question="Question: Find all variables that are assigned the value {value} in the text above.",
    answer_prefix="Answer: According to the chain(s) of variable assignment in the text above,"
    " {count} variables are assigned the value {value}, they are:",
)
_VALUES = range(10_000, 99_999)
_LETTERS, _EXAMPLE_LETTERS = 5, 3
_EXAMPLE_MAX_HOPS = 10
_EXAMPLE_MAX_TOKENS = 500
_EXAMPLE_DIVISOR = 2
"""The worked example takes at most half of the length, so that short prompts keep their text."""
_EXAMPLE_STEP = 5


class _FixedHaystack:
    """A haystack sample that ignores the room available."""

    def __init__(self, units: list[str], counts: list[int]):
        self.units, self.counts = units, counts

    def take(self, max_tokens: int) -> tuple[list[str], list[int]]:
        return self.units, self.counts


def prepare(
    task: VariableTracking, counter: TokenCounter, task_context: TaskContext
) -> Callable[[SampleContext], NeedlePrompt]:
    """Return a function that makes a sample's prompt builder.

    The chains of the worked example have other names and values than those of the sample. Unlike
    RULER, no blank follows "VAR B = VAR A", because token counts do not add up across it.
    """
    haystack = make_haystack(task.haystack, counter, task_context)
    templates = task.templates or ENGLISH
    example_haystack = _example_haystack(task, counter, task_context, haystack)

    def prompt_builder(sample: SampleContext) -> NeedlePrompt:
        random, chain_length = sample.random, task.hops + 1
        values = random.sample(_VALUES, 2 * task.chains)
        example = _worked_example(
            task, counter, haystack, example_haystack, random, values[task.chains :]
        )
        queried_depths = sample.depth_sampler.depths(sample.index, chain_length)
        unused_depths = [depth for depth in RULER_DEPTHS if depth not in queried_depths]
        depths = queried_depths + random.sample(unused_depths, (task.chains - 1) * chain_length)
        return _needle_prompt(
            counter,
            haystack,
            haystack.sample(random),
            _chains(random, _LETTERS, values, depths, chain_length, haystack),
            chain_length,
            templates,
            example,
        )

    return prompt_builder


def _worked_example(
    task: VariableTracking,
    counter: TokenCounter,
    haystack: Haystack,
    haystack_sample: HaystackSample,
    random: Random,
    values: Sequence[int],
) -> str:
    """A worked example, its answer and a blank line."""
    chain_length = min(task.hops, _EXAMPLE_MAX_HOPS) + 1
    depths = [
        depth for _ in range(task.chains) for depth in random.sample(RULER_DEPTHS, chain_length)
    ]
    assignments = _chains(random, _EXAMPLE_LETTERS, values, depths, chain_length, haystack)
    prompt = _needle_prompt(
        counter, haystack, haystack_sample, assignments, chain_length, task.templates or ENGLISH
    ).build(0)
    answer = " ".join(prompt.outputs)
    return f"{prompt.context}{prompt.question}{prompt.answer_prefix} {answer}\n\n"


def _example_haystack(
    task: VariableTracking, counter: TokenCounter, task_context: TaskContext, haystack: Haystack
) -> HaystackSample:
    """The worked example's haystack: a multiple of five whole units, as in RULER, or just one."""
    random = Random(stream_seed("vt example", *task_context.seed_parts))
    haystack_sample = haystack.sample(random)
    shortest = _FixedHaystack(*haystack_sample.take(0))
    values = random.sample(_VALUES, task.chains)
    shortest_example = _worked_example(task, counter, haystack, shortest, random, values)
    fixed_tokens = counter(shortest_example) - sum(shortest.counts)
    max_tokens = min(_EXAMPLE_MAX_TOKENS, task_context.length // _EXAMPLE_DIVISOR)
    units, counts = haystack_sample.take(max_tokens - fixed_tokens)
    # The last unit is left out: noise may end in a cut one.
    whole = (len(units) - 1) // _EXAMPLE_STEP * _EXAMPLE_STEP
    return _FixedHaystack(units[:whole], counts[:whole]) if whole else shortest


def _needle_prompt(
    counter: TokenCounter,
    haystack: Haystack,
    haystack_sample: HaystackSample,
    assignments: list[NeedlePlacement],
    chain_length: int,
    templates: VariableTrackingTemplates,
    example: str = "",
) -> NeedlePrompt:
    """A prompt that asks for the first chain, which has `chain_length` assignments."""
    fields = {"value": assignments[0].value, "count": chain_length}
    question = templates.question.format(**fields)
    return NeedlePrompt(
        counter,
        haystack,
        haystack_sample,
        assignments,
        intro=f"{example}{templates.intro.format()}\n",
        question=question,
        answer_prefix=blank_after(question) + templates.answer_prefix.format(**fields),
        outputs=tuple(assignment.key for assignment in assignments[:chain_length]),
    )


def _chains(
    random: Random,
    letters: int,
    values: Sequence[int],
    depths: Sequence[float],
    chain_length: int,
    haystack: Haystack,
) -> list[NeedlePlacement]:
    """Assignments, chain by chain; each chain takes the next `chain_length` depths in order."""
    end = "." if haystack.joiner == " " else ""
    names = _variable_names(random, letters, len(depths))
    assignments = []
    for chain, first in enumerate(range(0, len(depths), chain_length)):
        assigned = str(values[chain])
        chain_depths = sorted(depths[first : first + chain_length])
        for name, depth_percent in zip(names[first:], chain_depths, strict=False):
            text = f"VAR {name} = {assigned}{end}"
            assignments.append(NeedlePlacement(text, name, assigned, depth_percent))
            assigned = f"VAR {name}"
    return assignments


def _variable_names(random: Random, letters: int, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(random.choices(ascii_uppercase, k=letters))] = None
    return list(names)
