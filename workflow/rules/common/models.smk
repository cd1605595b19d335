"""Models of the experiment: their files, how to open them, the code of their attention."""

from pathlib import Path

from needlework.config.models.tokenizer_files import TEMPLATES, TOKENIZER_FILES

MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def model_folder(name):
    """The folder that a rule makes model `name` in."""
    return f"{RESULTS}/models/{name}"


def models_made_by(rule):
    """Models that rule `rule` makes."""
    return [name for name, model in experiment.models.items() if model.made_by == rule]


def model_spec(name):
    """How to open model `name`."""
    return experiment.local(name).spec(model_folder(name))


def model_files(name):
    """The files of model `name`: made by a rule, or found on this machine."""
    model = experiment.models[name]
    if model.made_by is not None:
        return [f"{model_folder(name)}/{file}" for file in MODEL_FILES]
    return model.files


def model_modules(name):
    """Modules of the attention in the weights of model `name`, or of a model it starts from."""
    types = {model.own_attention for _, model in experiment.ancestors(name)} - {None}
    return [f"needlework.attention.methods.{type}" for type in sorted(types)]


def files_named(names, files):
    """The files with one of the names."""
    return [file for file in files if Path(file).name in names]


def files_of_model(wildcards):
    """The files of model {model}."""
    return model_files(wildcards.model)


def tokenizer_path(wildcards):
    """Where the tokenizer of model {tokenizer} is: a folder, a hub name, or nowhere (None)."""
    model = experiment.models[wildcards.tokenizer]
    if model.made_by is not None:
        return model_folder(wildcards.tokenizer)
    return model.tokenizer_source and model.tokenizer_source.path


def tokenizer_revision(wildcards):
    """The revision of that tokenizer on the hub; None for the newest."""
    source = experiment.models[wildcards.tokenizer].tokenizer_source
    return source and source.revision


def files_for_prompts(wildcards):
    """The files that make prompts of model {tokenizer}: its tokenizer and chat template."""
    patterns = [*TOKENIZER_FILES]
    if experiment.models[wildcards.tokenizer].chat is not None:
        patterns += TEMPLATES
    return [
        file
        for file in model_files(wildcards.tokenizer)
        if any(Path(file).match(pattern) for pattern in patterns)
    ]


def chat_of(wildcards):
    """Settings of the chat template for prompts of model {tokenizer}; None for plain prompts."""
    return dump(experiment.models[wildcards.tokenizer].chat)


def takes_messages(wildcards):
    """Whether prompts of model {tokenizer} can be conversations."""
    return experiment.models[wildcards.tokenizer].takes_messages


def config_files():
    """The config.json of every model that exists before the run."""
    files = [file for model in experiment.models.values() for file in model.files]
    return files_named({"config.json"}, files)


def config_modules():
    """Modules that give planning the config of each model."""
    models = [model.local for model in experiment.models.values()]
    modules = {model.config_module for model in models if model is not None}
    return sorted(modules - {None})
