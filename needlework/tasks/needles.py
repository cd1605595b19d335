"""Needles and a question of the user's own."""

from collections.abc import Callable

from needlework.config.tasks import Needles
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.haystacks.haystack import haystack_of
from needlework.tasks.haystacks.needle_insertion import NeedlePlacement, NeedlePrompt
from needlework.tasks.prompts.token_counter import Counter


def drafts(
    task: Needles, counter: Counter, setting: Setting
) -> Callable[[SampleContext], NeedlePrompt]:
    """What makes the draft of a sample. Needles are told apart by their answers."""
    haystack = haystack_of(task.haystack, counter, setting)
    prefix = f" {task.answer_prefix.strip()}".rstrip()

    def draft(turn: SampleContext) -> NeedlePrompt:
        depths = turn.spread.depths(turn.index, len(task.needles))
        return NeedlePrompt(
            counter,
            haystack,
            haystack.start(turn.random),
            [
                NeedlePlacement(" ".join(needle.text.split()), needle.answer, needle.answer, at)
                for needle, at in zip(task.needles, depths, strict=True)
            ],
            intro=task.intro.strip(),
            question=task.question.strip(),
            answer_prefix=prefix,
            outputs=tuple(needle.answer for needle in task.needles),
        )

    return draft
