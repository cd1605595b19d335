"""Check before any work that every task fits its lengths."""

from pathlib import Path

import polars as pl
from tokenizers import Tokenizer

from needlework.config.experiment import Experiment
from needlework.config.models.base import Model
from needlework.sources.texts import read_texts
from needlework.tasks.generate import PROBED_SAMPLES, Sampler
from needlework.tasks.haystacks.punkt import sentence_table
from needlework.tasks.prompts.chat import load_chat_frame
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, SERVER_CHAT_FRAME, ChatFrame
from needlework.tasks.prompts.tokenizer import open_tokenizer, tokenizer_folder


def preflight(experiment: Experiment, fetch: bool = False) -> None:
    """Generate every task's samples at the shortest length, and one sample at the longest.

    Of existing samples (`ruler_jsonl`) all are read. Tokenizers that do not exist yet are skipped:
    those that a job makes and, without `fetch`, those on the hub. Of a user's text only as much is
    read as the shortest length needs.

    Raises:
        ValueError: a length does not suit a task, a file that samples are made from or a chat
            template is invalid, or the hub does not provide a tokenizer.
    """
    tokenizers = {experiment.root_model(system.model) for system in experiment.systems.values()}
    for name in sorted(tokenizers):
        model = experiment.models[name]
        if model.made_by is not None:
            continue
        source = model.tokenizer_source
        if fetch and source is not None:
            try:
                tokenizer_folder(source.path, source.revision)
            except ValueError as error:
                raise ValueError(f"models.{name}.{source.key} = {error}") from None
        if fetch or source is None or Path(source.path).is_dir():
            _check_tasks(experiment, model)


def chat_frame_of(model: Model) -> ChatFrame:
    """The chat template around a model's prompts, if it uses one.

    Raises:
        ValueError: see load_chat_frame.
    """
    chat, source = model.chat, model.tokenizer_source
    if chat is None or source is None:
        return SERVER_CHAT_FRAME if model.takes_messages else NO_CHAT_FRAME
    return load_chat_frame(source.path, source.revision, **chat.model_dump())


def thinking_tokens_of(model: Model) -> int:
    """The token budget that a model's prompts leave for thinking."""
    return 0 if model.chat is None else model.chat.thinking_tokens


def make_sampler(
    experiment: Experiment,
    task_name: str,
    length: int,
    tokenizer: Tokenizer,
    chat_frame: ChatFrame,
    thinking_tokens: int = 0,
    haystack: pl.DataFrame | None = None,
) -> Sampler:
    """Create the sampler of one of an experiment's tasks at one length; arguments as of Sampler.

    Raises:
        ValueError: see Sampler.
    """
    return Sampler(
        experiment.tasks[task_name],
        tokenizer,
        task_name=task_name,
        length=length,
        depths=experiment.depths,
        seed=experiment.seed,
        chat_frame=chat_frame,
        thinking_tokens=thinking_tokens,
        haystack=haystack,
        length_unit=experiment.length_unit,
    )


def _check_tasks(experiment: Experiment, model: Model) -> None:
    source = model.tokenizer_source
    tokenizer = open_tokenizer(source and source.path, source and source.revision)
    chat_frame, thinking_tokens = chat_frame_of(model), thinking_tokens_of(model)
    shortest, longest = min(experiment.lengths), max(experiment.lengths)
    haystacks = {
        name: sentence_table(
            read_texts(source.path, source.column, source.split), tokenizer, shortest
        )
        for name, source in experiment.haystacks.items()
        if Path(source.path).exists()
    }
    for task_name, task in experiment.tasks.items():
        haystack_name = task.haystack_name
        counts = {longest: 1, shortest: experiment.samples}
        if not task.generated:
            counts = dict.fromkeys(experiment.lengths, experiment.samples)
        elif haystack_name in experiment.haystacks:
            counts = {shortest: counts[shortest]} if haystack_name in haystacks else {}
        for length, count in counts.items():
            sampler = make_sampler(
                experiment,
                task_name,
                length,
                tokenizer,
                chat_frame,
                thinking_tokens,
                haystacks.get(haystack_name or ""),
            )
            for index in range(count if sampler.is_additive else min(count, PROBED_SAMPLES)):
                sampler.sample(index)
