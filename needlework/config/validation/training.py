"""Trainings that cannot work: their rows, their processes, the text that they are validated on."""

from collections.abc import Iterator
from pathlib import Path

from needlework.config.errors import Problem, one_of
from needlework.config.experiment import Experiment
from needlework.config.model_info import max_positions
from needlework.config.models import Api, Checkpoint, Derived
from needlework.config.training import Distill, Finetune, FinetuneStage, Loop, Stage


def process_problems(
    where: tuple[str, ...], recipe: Loop, stages: list[FinetuneStage | Stage]
) -> Iterator[Problem]:
    """Whether `stages`, of the recipe at `where`, have rows for all its processes."""
    parts = recipe.processes * recipe.gradient_accumulation_steps
    fewest = min(stage.rows if isinstance(stage, Stage) else stage.batch_size for stage in stages)
    if fewest < parts:
        key = "processes" if recipe.processes > fewest else "gradient_accumulation_steps"
        yield (
            (*where, key),
            f"shares the rows of a step among {parts}, and a stage has {fewest}; write processes "
            f"times gradient_accumulation_steps of at most {fewest}",
        )
    file = getattr(recipe, "accelerate_config", None)
    if file is not None and not Path(file).is_file():
        yield (*where, "accelerate_config"), "no such file; name one that `accelerate config` wrote"


def row_problems(
    experiment: Experiment, where: tuple[str, ...], recipe: Finetune | Distill
) -> Iterator[Problem]:
    """Whether the rows that the recipe at `where` names are there, and fit."""
    distils = isinstance(recipe, Distill)
    for i, name in enumerate(recipe.data if distils else recipe.weights):
        data = experiment.finetune_data.get(name)
        at = (*where, "data", i) if distils else (*where, "data")
        if data is None:
            yield at, "names no finetune_data; " + one_of(experiment.finetune_data, name)
        elif distils and not data.has_answers:
            yield at, "is text, without the answers that gates are taught by; name other rows"
        elif (longest := max(data.lengths)) > recipe.sequence_length:
            yield (
                (*where, "sequence_length"),
                f"is below the {longest} tokens of finetune_data.{name}; "
                f"write at least {longest}, or shorten the data",
            )


def validation_problems(experiment: Experiment) -> Iterator[Problem]:
    """Whether what models are validated on is there and fits, in the file's order."""
    for name, model in experiment.models.items():
        if isinstance(model, Checkpoint | Api):
            continue
        key = "finetune" if isinstance(model, Derived) else "pretrain"
        where, recipe = ("models", name, key), getattr(model, key)
        stream = experiment.streams.get(recipe.validation)
        if recipe.validation is not None and stream is None:
            near = one_of(experiment.streams, recipe.validation)
            yield (*where, "validation"), "names no stream; " + near
        elif stream is None:
            if recipe.validate_every:
                what = "needs a text; name one of streams under validation, or write 0"
                yield (*where, "validate_every"), what
        elif not recipe.validate_every:
            what = "is never read; write validate_every too, or leave it out"
            yield (*where, "validation"), what
        elif not stream.overlap:
            limit, tokens = max_positions(experiment, name), recipe.validation_tokens
            if limit is not None and min(tokens, stream.tokens or tokens) > limit:
                yield (
                    (*where, "validation_tokens"),
                    f"goes beyond the {limit} positions of the model; write at most {limit}, or "
                    f"give streams.{recipe.validation} an overlap",
                )
