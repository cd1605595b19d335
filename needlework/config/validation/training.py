"""Validation of training recipes: data, processes and held-out text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from needlework.config.errors import Location, Problem, suggest
from needlework.config.experiment import Experiment
from needlework.config.model_info import max_positions
from needlework.config.training import (
    Distill,
    Finetune,
    FinetuneStage,
    ModelTraining,
    PretrainStage,
    TrainingLoop,
)


def process_problems(
    where: Location, recipe: TrainingLoop, stages: Sequence[FinetuneStage | PretrainStage]
) -> Iterator[Problem]:
    """Stages of the recipe at `where` with fewer rows per step than processes to share them."""
    parts = recipe.processes * recipe.gradient_accumulation_steps
    fewest = min(s.rows if isinstance(s, PretrainStage) else s.batch_size for s in stages)
    if fewest < parts:
        key = "processes" if recipe.processes > fewest else "gradient_accumulation_steps"
        yield (
            (*where, key),
            f"divides the rows of a step into {parts} parts, but a stage has {fewest}; set "
            f"processes x gradient_accumulation_steps to at most {fewest}",
        )
    file = recipe.accelerate_config if isinstance(recipe, ModelTraining) else None
    if file is not None and not Path(file).is_file():
        yield (
            (*where, "accelerate_config"),
            "no such file; write the path of a file that `accelerate config` made",
        )


def row_problems(
    experiment: Experiment, where: Location, recipe: Finetune | Distill
) -> Iterator[Problem]:
    """Data of the recipe at `where` that is undefined, unsuitable or too long."""
    names: list[tuple[Location, str]]
    if isinstance(recipe, Distill):
        names = [((*where, "data", i), name) for i, name in enumerate(recipe.data)]
    else:
        names = [((*where, "data"), name) for name in recipe.data_weights]
    for at, name in names:
        data = experiment.finetune_data.get(name)
        if data is None:
            yield at, "unknown finetune_data; " + suggest(experiment.finetune_data, name)
        elif isinstance(recipe, Distill) and not data.has_answers:
            yield at, "is text without answers, which gates need; write the name of other data"
        elif (longest := max(data.lengths)) > recipe.sequence_length:
            yield (
                (*where, "sequence_length"),
                f"is below the {longest} tokens of finetune_data.{name}; "
                f"write at least {longest}, or shorten the data",
            )


def validation_problems(experiment: Experiment) -> Iterator[Problem]:
    """Problems with the held-out text of trained models, in file order."""
    for name, model in experiment.models.items():
        if model.trained is None:
            continue
        where, recipe = ("models", name, model.trained.recipe_key), model.trained.recipe
        stream = None if recipe.validation is None else experiment.streams.get(recipe.validation)
        if recipe.validation is not None and stream is None:
            hint = suggest(experiment.streams, recipe.validation)
            yield (*where, "validation"), "unknown stream; " + hint
        elif stream is None:
            if recipe.validate_every:
                what = "needs held-out text; set validation to a name under streams, or write 0"
                yield (*where, "validate_every"), what
        elif not recipe.validate_every:
            what = "is never used; set validate_every too, or remove this key"
            yield (*where, "validation"), what
        elif not stream.overlap:
            limit, tokens = max_positions(experiment, name), recipe.validation_tokens
            if limit is not None and min(tokens, stream.tokens or tokens) > limit:
                yield (
                    (*where, "validation_tokens"),
                    f"exceeds the {limit} positions of the model; write at most {limit}, or "
                    f"set an overlap in streams.{recipe.validation}",
                )
