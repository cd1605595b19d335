"""Models that are missing, or that are made of what is missing."""

from collections.abc import Iterator
from pathlib import Path

from needlework.config.errors import Location, Problem, suggest
from needlework.config.experiment import Experiment
from needlework.config.model_info import BEHIND_API, is_behind_api
from needlework.config.models.api import Api
from needlework.config.models.tokenizer_files import has_vocabulary
from needlework.config.paths import is_hub_name
from needlework.config.training import Finetune
from needlework.config.validation.training import process_problems, row_problems


def model_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong with the experiment's models and its package, in the file's order."""
    for name, model in experiment.models.items():
        where = ("models", name)
        if model.parent is not None:
            yield from _parent_problems(experiment, name, model.parent)
        yield from (((*where, *key), message) for key, message in model.problems())
        if model.remote is not None:
            yield from _tokenizer_problems(experiment, where, model.remote)
        if model.trained is not None:
            recipe, key = model.trained.recipe, model.trained.recipe_key
            yield from process_problems((*where, key), recipe, model.trained.stages)
            if isinstance(recipe, Finetune):
                yield from row_problems(experiment, (*where, key), recipe)
    pretrained = [name for name, m in experiment.models.items() if m.made_by == "pretrain_model"]
    if experiment.package is not None and experiment.package not in pretrained:
        yield ("package",), "is not a pretrained model; " + suggest(pretrained, experiment.package)


def _parent_problems(experiment: Experiment, name: str, parent: str) -> Iterator[Problem]:
    where = ("models", name, "base")
    if parent not in experiment.models:
        others = [other for other in experiment.models if other != name]
        yield where, "unknown model; " + suggest(others, parent)
    if is_behind_api(experiment, parent):
        yield where, BEHIND_API
    *_, (_, last) = experiment.ancestors(name)
    if last.parent in experiment.models:
        yield where, "leads back to itself; start from a `path` or `pretrain` model"


def _tokenizer_problems(experiment: Experiment, model: Location, api: Api) -> Iterator[Problem]:
    where, name = (*model, "tokenizer"), api.tokenizer
    if name is None:
        if experiment.length_unit == "tokens":
            yield (
                where,
                "is missing, so tokens cannot be counted; name one, or write length_unit: "
                "characters",
            )
    elif name in experiment.models:
        if is_behind_api(experiment, name):
            yield (
                where,
                "runs behind an API itself; name a model whose tokenizer is here, or a folder",
            )
    elif Path(name).is_dir():
        if not has_vocabulary(name):
            yield where, "has no tokenizer.json; name a folder that has one"
    elif not is_hub_name(name):
        names = [other for other in experiment.models if not is_behind_api(experiment, other)]
        yield where, f"unknown model; {suggest(names, name)}, or a folder with a tokenizer.json"
