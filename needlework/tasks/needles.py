"""Task `needles`: the user's own needles and question."""

from collections.abc import Callable

from needlework.config.tasks.needles import Needles
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.haystacks.haystack import make_haystack
from needlework.tasks.haystacks.needle_insertion import NeedlePlacement, NeedlePrompt
from needlework.tasks.prompts.token_counter import TokenCounter


def prepare(
    task: Needles, counter: TokenCounter, task_context: TaskContext
) -> Callable[[SampleContext], NeedlePrompt]:
    """Return a function that makes a sample's prompt builder. A needle's key is its answer."""
    haystack = make_haystack(task.haystack, counter, task_context)
    answer_prefix = f" {task.answer_prefix.strip()}".rstrip()

    def prompt_builder(sample: SampleContext) -> NeedlePrompt:
        depths = sample.depth_sampler.depths(sample.index, len(task.needles))
        return NeedlePrompt(
            counter,
            haystack,
            haystack.sample(sample.random),
            [
                NeedlePlacement(" ".join(needle.text.split()), needle.answer, needle.answer, depth)
                for needle, depth in zip(task.needles, depths, strict=True)
            ],
            intro=task.intro.strip(),
            question=task.question.strip(),
            answer_prefix=answer_prefix,
            outputs=tuple(needle.answer for needle in task.needles),
        )

    return prompt_builder
