"""Find out before any work whether every task fits its lengths."""

from pathlib import Path

from needlework.config.experiment import Experiment
from needlework.config.models import Checkpoint
from needlework.tasks.chat import open_frame
from needlework.tasks.generate import Sampler
from needlework.tasks.prompts import PLAIN
from needlework.tasks.texts import texts
from needlework.tasks.tokenizer import open_tokenizer

_TRIED = 64


def preflight(experiment: Experiment) -> None:
    """Make the first samples of each task at the shortest length, and one at the longest.

    Left out is what is not there yet: tokenizers to be made or fetched; of text to be cut into
    sentences, the beginning is read.

    Raises:
        ValueError: a length is too small for a task, or beyond its natural end; a file that samples
            are made from, or a chat template, is no good.
    """
    for haystack in experiment.haystacks.values():
        if Path(haystack.path).exists():
            next(texts(haystack.path, haystack.column, haystack.split))
    tokenizers = {experiment.root_model(system.model) for system in experiment.systems.values()}
    for name in sorted(tokenizers):
        model = experiment.models[name]
        if not (isinstance(model, Checkpoint) and Path(model.path).is_dir()):
            continue
        frame, thinking_tokens = PLAIN, 0
        if model.chat_template:
            thinking_tokens = model.thinking_tokens
            frame = open_frame(
                model.path,
                system_prompt=model.system_prompt,
                thinking_tokens=thinking_tokens,
                date=model.chat_date,
            )
        tokenizer = open_tokenizer(model.path)
        for task_name, task in experiment.tasks.items():
            if getattr(task, "haystack", None) in experiment.haystacks:
                continue
            for length in sorted({min(experiment.lengths), max(experiment.lengths)}):
                sampler = Sampler(
                    task,
                    tokenizer,
                    task_name=task_name,
                    length=length,
                    depths=experiment.depths,
                    seed=experiment.seed,
                    frame=frame,
                    thinking_tokens=thinking_tokens,
                    length_unit=experiment.length_unit,
                )
                few = length == min(experiment.lengths)
                for index in range(min(experiment.samples, _TRIED) if few else 1):
                    sampler.sample(index)
