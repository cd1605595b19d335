"""RULER's needle-in-a-haystack tasks (Hsieh et al., 2024)."""

from collections.abc import Callable, Collection
from random import Random

from needlework.config.tasks.base import ValueType
from needlework.config.tasks.niah import Niah
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.haystacks.haystack import NEEDLE, make_haystack
from needlework.tasks.haystacks.needle_insertion import NeedlePlacement, NeedlePrompt
from needlework.tasks.haystacks.needle_values import draw_values
from needlework.tasks.haystacks.sentence_ends import blank_after
from needlework.tasks.prompts.depth_sampler import RULER_DEPTHS
from needlework.tasks.prompts.token_counter import TokenCounter

INTRO = (
    "Some special magic {values} are hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {values} afterwards."
)
INTRO_ONE = (
    "A special magic {value} is hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {value} afterwards."
)
QUESTION = "What are all the special magic {values} for {query} mentioned in the provided text?"
QUESTION_ONE = "What is the special magic {value} for {query} mentioned in the provided text?"
ANSWER_PREFIX = " The special magic {values} for {query} mentioned in the provided text are"
ANSWER_PREFIX_ONE = " The special magic {value} for {query} mentioned in the provided text is"


def prepare(
    task: Niah, counter: TokenCounter, task_context: TaskContext
) -> Callable[[SampleContext], NeedlePrompt]:
    """Return a function that makes a sample's prompt builder.

    All keys and values of a sample are distinct, those of its haystack included.
    """
    needle = NEEDLE if task.templates is None else task.templates.needle
    haystack = make_haystack(
        task.haystack,
        counter,
        task_context,
        key_type=task.key_type,
        value_type=task.value_type,
        digits=task.digits,
        part=task.key_words,
        needle=needle,
    )
    separator = "" if task.templates is None else task.templates.key_separator
    if task.templates is not None:
        intro, question = task.templates.intro, task.templates.question
        answer_prefix = blank_after(question) + task.templates.answer_prefix
    elif task.queries * task.values == 1:
        intro, question, answer_prefix = INTRO_ONE, QUESTION_ONE, ANSWER_PREFIX_ONE
    else:
        intro, question, answer_prefix = INTRO, QUESTION, ANSWER_PREFIX

    def draw(random: Random, kind: ValueType, count: int, exclude: Collection[str]) -> list[str]:
        return draw_values(
            random, kind, count, digits=task.digits, part=task.key_words, exclude=exclude
        )

    def prompt_builder(sample: SampleContext) -> NeedlePrompt:
        random, per_key = sample.random, task.values
        keys = draw(random, task.key_type, task.keys, haystack.used_values)
        used = {*haystack.used_values, *keys} if task.haystack == "needle" else keys
        values = draw(random, task.value_type, task.keys * per_key, used)
        depths = sample.depth_sampler.depths(sample.index, task.queries * per_key)
        unused_depths = [depth for depth in RULER_DEPTHS if depth not in depths]
        depths += random.sample(unused_depths, len(values) - len(depths))
        pairs = [
            (key, values[i * per_key + j]) for i, key in enumerate(keys) for j in range(per_key)
        ]
        words = {"values": task.value_type, "value": task.value_type[:-1]}
        asked = keys[: task.queries]
        query = _enumerate_keys(asked) if task.templates is None else separator.join(asked)
        return NeedlePrompt(
            counter,
            haystack,
            haystack.sample(random),
            [
                NeedlePlacement(
                    needle.format(values=task.value_type, key=key, value=value), key, value, depth
                )
                for (key, value), depth in zip(pairs, depths, strict=True)
            ],
            intro=intro.format(**words),
            question=question.format(query=query, **words),
            answer_prefix=answer_prefix.format(query=query, **words),
            outputs=tuple(values[: task.queries * per_key]),
        )

    return prompt_builder


def _enumerate_keys(keys: list[str]) -> str:
    return f"{', '.join(keys[:-1])}, and {keys[-1]}" if len(keys) > 1 else keys[0]
