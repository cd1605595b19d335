"""Find out before any work whether every task fits its lengths."""

from pathlib import Path

import polars as pl
from tokenizers import Tokenizer

from needlework.config.experiment import Experiment
from needlework.config.models import Api, Checkpoint
from needlework.config.tasks import RulerJsonl
from needlework.sources.texts import texts
from needlework.tasks.generate import TRIED, Sampler
from needlework.tasks.haystacks.punkt import split
from needlework.tasks.prompts.chat import open_frame
from needlework.tasks.prompts.prompt import PLAIN, Frame
from needlework.tasks.prompts.tokenizer import open_tokenizer, tokenizer_folder


def preflight(experiment: Experiment, fetch: bool = False) -> None:
    """Make the samples of each task at the shortest length, and one at the longest.

    Of rows made elsewhere all are tried. Left out is what is not there yet: tokenizers to be made
    or, without `fetch`, to be fetched; of text of the user's no more is read than the shortest
    length takes.

    Raises:
        ValueError: a length is too small for a task, or beyond its natural end; a file that samples
            are made from, or a chat template, is no good; the hub does not give a tokenizer.
    """
    tokenizers = {experiment.root_model(system.model) for system in experiment.systems.values()}
    for name in sorted(tokenizers):
        model = experiment.models[name]
        if isinstance(model, Api | Checkpoint):
            key = "tokenizer" if isinstance(model, Api) else "path"
            path = getattr(model, key)
            if fetch and path is not None:
                try:
                    tokenizer_folder(path, getattr(model, "revision", None))
                except ValueError as error:
                    raise ValueError(f"models.{name}.{key} = {error}") from None
            if fetch or path is None or Path(path).is_dir():
                _try(experiment, model, path)


def frame_of(model: Api | Checkpoint) -> tuple[Frame, int]:
    """What stands around a model's prompts, and tokens for thoughts.

    Raises:
        ValueError: as `open_frame`.
    """
    if isinstance(model, Api) or not model.chat_template:
        return PLAIN, 0
    frame = open_frame(
        model.path,
        model.revision,
        system_prompt=model.system_prompt,
        thinking_tokens=model.thinking_tokens,
        date=model.chat_date,
    )
    return frame, model.thinking_tokens


def sampler_of(
    experiment: Experiment,
    task_name: str,
    length: int,
    tokenizer: Tokenizer,
    framed: tuple[Frame, int],
    haystack: pl.DataFrame | None = None,
) -> Sampler:
    """The samples of one of an experiment's tasks at one length.

    Args:
        framed: as `frame_of` gives it.
        haystack: as Sampler takes it.

    Raises:
        ValueError: as Sampler.
    """
    frame, thinking_tokens = framed
    return Sampler(
        experiment.tasks[task_name],
        tokenizer,
        task_name=task_name,
        length=length,
        depths=experiment.depths,
        seed=experiment.seed,
        frame=frame,
        thinking_tokens=thinking_tokens,
        haystack=haystack,
        length_unit=experiment.length_unit,
    )


def _try(experiment: Experiment, model: Api | Checkpoint, path: str | None) -> None:
    revision = getattr(model, "revision", None)
    tokenizer, framed = open_tokenizer(path, revision), frame_of(model)
    shortest, longest = min(experiment.lengths), max(experiment.lengths)
    haystacks = {
        name: split(texts(found.path, found.column, found.split), tokenizer, shortest)
        for name, found in experiment.haystacks.items()
        if Path(found.path).exists()
    }
    for task_name, task in experiment.tasks.items():
        haystack = getattr(task, "haystack", None)
        counts = {longest: 1, shortest: experiment.samples}
        if isinstance(task, RulerJsonl):
            counts = dict.fromkeys(experiment.lengths, experiment.samples)
        elif haystack in experiment.haystacks:
            counts = {shortest: counts[shortest]} if haystack in haystacks else {}
        for length, count in counts.items():
            sampler = sampler_of(
                experiment, task_name, length, tokenizer, framed, haystacks.get(haystack)
            )
            for index in range(count if sampler.counts_add_up else min(count, TRIED)):
                sampler.sample(index)
