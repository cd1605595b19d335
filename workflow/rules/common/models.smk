"""Models of the experiment: their files, how they are opened, the code that is part of them."""

import json
from pathlib import Path

from needlework.config.models import Api, Checkpoint, Derived, Pretrained
from needlework.config.opening import Opening

MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def model_path(name):
    """The folder that model `name` is opened from, or its hub name."""
    model = experiment.models[name]
    if isinstance(model, Api):
        return model.tokenizer  # all that is opened of it
    return model.path if isinstance(model, Checkpoint) else f"{RESULTS}/models/{name}"


def model_files(name):
    """The files of model `name`, as inputs: made by this workflow, or found in the user's folder."""
    if model_path(name) is None:
        return []
    path = Path(model_path(name))
    if not isinstance(experiment.models[name], Checkpoint | Api):
        return [f"{path}/{file}" for file in MODEL_FILES]
    kinds = ["json", "jinja", "safetensors"]
    kinds += ["bin"] if allows_pickle(name) else []
    found = [file for kind in kinds for file in path.glob(f"*.{kind}")]
    return sorted(str(file) for file in found)


def tokenizer_files(name, with_end=False):
    """The files that make prompts of model `name`: its tokenizer, and its chat template if asked.

    `with_end`: and the file that says which token ends a text.
    """
    wanted = {"tokenizer.json"}
    if chat_of(name) is not None:
        wanted |= {"tokenizer_config.json", "chat_template.jinja"}
    if with_end:
        wanted |= {"tokenizer_config.json"}
    return [file for file in model_files(name) if Path(file).name in wanted]


def chat_of(name):
    """How prompts of model `name` are put into its chat template; None: they are not."""
    model = experiment.models[name]
    if not getattr(model, "chat_template", False):
        return None
    return {
        "system_prompt": model.system_prompt,
        "thinking_tokens": model.thinking_tokens,
        "date": model.chat_date,
    }


def model_modules(name):
    """Modules of the attention that is part of model `name`, or of one that it came from."""
    model, modules = experiment.models[name], []
    while isinstance(model, Derived):
        if model.attention is not None:
            modules.append(model.attention.module)
        model = experiment.models[model.base]
    if isinstance(model, Checkpoint) and (Path(model.path) / "config.json").is_file():
        attention = json.loads((Path(model.path) / "config.json").read_text())
        if "needlework_attention" in attention:
            modules.append(f"needlework.attention.methods.{attention['needlework_attention']}")
    return sorted(set(modules))


def allows_pickle(model):
    """Whether weights of model `model` may be read from pickle files."""
    return getattr(experiment.models[model], "allow_pickle", False)


def opening_of(model):
    """How model `model` is held in memory: as a `path` model says, or plainly."""
    return getattr(experiment.models[model], "opening", Opening())


def dump_opening(model):
    """The keys of it that a job which opens the model reads."""
    return opening_of(model).model_dump(mode="json", exclude={"dp"})


def pretrained_models():
    """Models that this experiment makes from nothing."""
    return [name for name, m in experiment.models.items() if isinstance(m, Pretrained)]


def finetuned_models():
    """Models that this experiment fine-tunes."""
    return [name for name, m in experiment.models.items() if isinstance(m, Derived)]
