"""Models that are not there, or are made of what is not there."""

from collections.abc import Iterator
from pathlib import Path

from needlework.config.errors import Problem, suggest
from needlework.config.experiment import Experiment
from needlework.config.model_info import BEHIND_API, is_behind_api
from needlework.config.models import Api, Checkpoint, Derived, Pretrained
from needlework.config.paths import is_hub_name, json_object
from needlework.config.validation.training import process_problems, row_problems


def model_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong with the experiment's models and its package, in the file's order."""
    for name, model in experiment.models.items():
        where = ("models", name)
        if isinstance(model, Derived):
            yield from _derived(experiment, name, model)
        elif isinstance(model, Checkpoint) and Path(model.path).exists():
            for file in ("config.json", "tokenizer.json"):
                if not (Path(model.path) / file).is_file():
                    yield (*where, "path"), f"has no {file}; name a Hugging Face checkpoint folder"
                elif file == "config.json" and json_object(Path(model.path) / file) is None:
                    yield (*where, "path"), f"has a {file} that is no JSON object; fetch it again"
            yield from _weights((*where, "path"), model)
        elif isinstance(model, Checkpoint) and not is_hub_name(model.path):
            yield (*where, "path"), "no such folder; name an existing one, or a hub's owner/name"
        if isinstance(model, Checkpoint):
            yield from _chat(where, model)
        if isinstance(model, Api):
            yield from _api(experiment, where, model)
        if isinstance(model, Pretrained):
            yield from process_problems((*where, "pretrain"), model.pretrain, model.pretrain.stages)
    made = [name for name, m in experiment.models.items() if isinstance(m, Pretrained)]
    if experiment.package is not None and experiment.package not in made:
        yield ("package",), "names no pretrained model; " + suggest(made, experiment.package)


def _api(experiment: Experiment, where: tuple[str, ...], model: Api) -> Iterator[Problem]:
    at, name = (*where, "tokenizer"), model.tokenizer
    if name is None:
        if experiment.length_unit == "tokens":
            what = "is not there, so no tokens can be counted; name one, or write length_unit: "
            yield at, what + "characters"
    elif name in experiment.models:
        if isinstance(experiment.models[name], Api):
            yield at, "is behind an API itself; name a model whose tokenizer is here, or a folder"
    elif Path(name).is_dir():
        if not (Path(name) / "tokenizer.json").is_file():
            yield at, "has no tokenizer.json; name a folder that has one"
    elif not is_hub_name(name):
        names = [n for n, other in experiment.models.items() if not isinstance(other, Api)]
        yield at, f"names no model; {suggest(names, name)}, or a folder with a tokenizer.json"


def _weights(where: tuple[str, ...], model: Checkpoint) -> Iterator[Problem]:
    found = {path.suffix for path in Path(model.path).glob("*")}
    if ".bin" in found and ".safetensors" not in found and not model.allow_pickle:
        yield (
            where,
            "has its weights in pickle files alone; save them as safetensors, or write "
            "allow_pickle: true if you trust them",
        )


def _chat(where: tuple[str, ...], model: Checkpoint) -> Iterator[Problem]:
    if not model.chat_template:
        for key in ("system_prompt", "thinking_tokens"):
            if getattr(model, key):
                yield (*where, key), "needs a chat template; write chat_template: true, or leave it"
        return
    folder = Path(model.path)
    if folder.is_dir() and not (folder / "chat_template.jinja").is_file():
        config = folder / "tokenizer_config.json"
        found = json_object(config) if config.is_file() else {}
        if found is None:
            what = "has a tokenizer_config.json that is no JSON object; fetch it again"
            yield (*where, "path"), what
        elif "chat_template" not in found:
            yield (
                (*where, "chat_template"),
                f"has no template: {folder} has neither chat_template.jinja nor one in "
                "tokenizer_config.json; write false, or name an instruct model",
            )


def _derived(experiment: Experiment, name: str, model: Derived) -> Iterator[Problem]:
    where = ("models", name)
    if model.base not in experiment.models:
        others = [other for other in experiment.models if other != name]
        yield (*where, "base"), "names no model; " + suggest(others, model.base)
        return
    if is_behind_api(experiment, model.base):
        yield (*where, "base"), BEHIND_API
    seen, at = {name}, model.base
    while isinstance(above := experiment.models.get(at), Derived):
        if at in seen:
            yield (*where, "base"), "leads back to itself; start from a `path` or `pretrain` model"
            return
        seen.add(at)
        at = above.base
    if model.attention is not None and not model.attention.converts_model:
        yield (
            (*where, "attention", "type"),
            "is put on at evaluation; write it under systems, not models",
        )
    recipe = model.finetune
    yield from process_problems((*where, "finetune"), recipe, [*recipe.curriculum, recipe])
    yield from row_problems(experiment, (*where, "finetune"), recipe)
