"""Needles in a haystack, as RULER makes them (Hsieh et al., 2024)."""

from collections.abc import Callable

from needlework.config.tasks import Niah
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.haystacks.haystack import NEEDLE, haystack_of
from needlework.tasks.haystacks.needle_insertion import NeedlePlacement, NeedlePrompt
from needlework.tasks.haystacks.needle_values import draw
from needlework.tasks.prompts.depth_sampler import RULER_DEPTHS
from needlework.tasks.prompts.token_counter import Counter

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


def drafts(
    task: Niah, counter: Counter, setting: Setting
) -> Callable[[SampleContext], NeedlePrompt]:
    """What makes the draft of a sample. All keys and values differ, the haystack's too."""
    kinds = {"digits": task.digits, "part": task.key_words}
    haystack = haystack_of(
        task.haystack,
        counter,
        setting,
        key_type=task.key_type,
        value_type=task.value_type,
        **kinds,
    )
    one = task.queries * task.values == 1
    intro, question, prefix = (
        (INTRO_ONE, QUESTION_ONE, ANSWER_PREFIX_ONE) if one else (INTRO, QUESTION, ANSWER_PREFIX)
    )

    def draft(turn: SampleContext) -> NeedlePrompt:
        random, each = turn.random, task.values
        keys = draw(random, task.key_type, task.keys, but=haystack.taken, **kinds)
        taken = {*haystack.taken, *keys} if task.haystack == "needle" else keys
        values = draw(random, task.value_type, task.keys * each, but=taken, **kinds)
        depths = turn.spread.depths(turn.index, task.queries * each)
        others = [depth for depth in RULER_DEPTHS if depth not in depths]
        depths += random.sample(others, len(values) - len(depths))
        pairs = [(key, values[i * each + j]) for i, key in enumerate(keys) for j in range(each)]
        words = {"values": task.value_type, "value": task.value_type[:-1]}
        query = _listed(keys[: task.queries])
        return NeedlePrompt(
            counter,
            haystack,
            haystack.start(random),
            [
                NeedlePlacement(
                    NEEDLE.format(values=task.value_type, key=key, value=value), key, value, at
                )
                for (key, value), at in zip(pairs, depths, strict=True)
            ],
            intro=intro.format(**words),
            question=question.format(query=query, **words),
            answer_prefix=prefix.format(query=query, **words),
            outputs=tuple(values[: task.queries * each]),
        )

    return draft


def _listed(keys: list[str]) -> str:
    return f"{', '.join(keys[:-1])}, and {keys[-1]}" if len(keys) > 1 else keys[0]
