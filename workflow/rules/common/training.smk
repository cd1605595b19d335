"""Training of models and gates: rows, validation, tables."""

from pathlib import Path

HELD_OUT = "needlework.evaluation.streaming.held_out"
"""Module that evaluates a model on held-out text while it is trained."""


def recipe_of(wildcards):
    """How model {model} is trained."""
    return dump(experiment.models[wildcards.model].recipe)


def processes_of(wildcards):
    """Processes that train model {model}."""
    return experiment.models[wildcards.model].recipe.processes


def training_seed(wildcards):
    """The seed of a model's fine-tuning: the recipe's, or the experiment's."""
    seed = experiment.models[wildcards.model].recipe.seed
    return experiment.seed if seed is None else seed


def pretrained_positions(wildcards):
    """Positions of pretrained model {model}."""
    return experiment.models[wildcards.model].positions


def base_files(wildcards):
    """The files of the model that {model} is fine-tuned from."""
    return model_files(experiment.models[wildcards.model].parent)


def base_model(wildcards):
    """How to open that model for training, in the dtype of {model}."""
    model = experiment.models[wildcards.model]
    return model_spec(model.parent).for_training(model.dtype).dump()


def conversion_of(wildcards):
    """Attention that model {model} gets in place of its base's."""
    return dump(experiment.models[wildcards.model].conversion)


def training_modules(wildcards):
    """Modules that training model {model} runs, in addition to its script's."""
    validates = experiment.models[wildcards.model].recipe.validate_every
    return [*model_modules(wildcards.model), *([HELD_OUT] if validates else [])]


def rows_of(model, names):
    """Tables of finetune_data that `model` is trained on, in its tokenizer's lengths."""
    folder = f"{RESULTS}/finetune_data/{experiment.root_model(model)}"
    return [f"{folder}/{name}.parquet" for name in names]


def finetune_rows(wildcards):
    """Tables of rows that model {model} is fine-tuned on."""
    recipe = experiment.models[wildcards.model].recipe
    return rows_of(wildcards.model, recipe.data_weights)


def gates_recipe(wildcards):
    """Gates {gates}: their model, shape and training."""
    return dump(experiment.gates[wildcards.gates])


def distill_processes(wildcards):
    """Processes that train gates {gates}."""
    return experiment.gates[wildcards.gates].distill.processes


def distill_rows(wildcards):
    """Tables of rows that gates {gates} are trained on."""
    gates = experiment.gates[wildcards.gates]
    return rows_of(gates.model, gates.distill.data)


def teacher_files(wildcards):
    """The files of the model that gates {gates} are for."""
    return model_files(experiment.gates[wildcards.gates].model)


def teacher_model(wildcards):
    """How to open that model for training."""
    return model_spec(experiment.gates[wildcards.gates].model).for_training().dump()


def teacher_modules(wildcards):
    """Modules of that model's attention."""
    return model_modules(experiment.gates[wildcards.gates].model)


def training_rows():
    """{tokenizer}/{data} of everything that this experiment fine-tunes or distills on."""
    trained = [
        (name, experiment.models[name].recipe.data_weights)
        for name in models_made_by("finetune_model")
    ]
    trained += [
        (gates.model, gates.distill.data) for gates in experiment.gates.values()
    ]
    rows = [
        f"{experiment.root_model(model)}/{name}"
        for model, data in trained
        for name in data
    ]
    return list(dict.fromkeys(rows))


def checked_rows():
    """Those of them with questions and answers, in a tokenizer that samples are made in."""
    tokenizers = {experiment.root_model(s.model) for s in experiment.systems.values()}
    return [
        str(rows)
        for rows in map(Path, training_rows())
        if rows.parent.name in tokenizers
        and experiment.finetune_data[rows.name].has_answers
    ]


def held_out_files(wildcards):
    """The token ids that validate model {model}, and where their documents start."""
    stream = experiment.models[wildcards.model].recipe.validation
    folder = f"{RESULTS}/tokens/{experiment.root_model(wildcards.model)}/{stream}"
    files = [] if stream is None else ["0.npy", "0.starts.npy"]
    return [f"{folder}/{file}" for file in files]


def validation_of(wildcards):
    """The class that validates model {model} in training, and its arguments; None for neither."""
    recipe = experiment.models[wildcards.model].recipe
    if not recipe.validate_every:
        return None
    stream = experiment.streams[recipe.validation]
    tokens, starts = held_out_files(wildcards)
    keys = ("chunk_size", "overlap", "separate_documents", "adaptive")
    arguments = {
        "tokens": tokens,
        "starts": starts,
        "max_tokens": recipe.validation_tokens,
        "settings": {key: getattr(stream, key) for key in keys},
    }
    return [f"{HELD_OUT}:HeldOut", arguments]


def trained_models():
    """Models that this experiment trains, pretrained ones first."""
    return [*models_made_by("pretrain_model"), *models_made_by("finetune_model")]


def training_tables(stage="training"):
    """One stage's table of everything that this experiment trains, by name in the figure."""
    models = {name: name for name in trained_models()}
    gates = {f"gates {name}": f"gates/{name}" for name in experiment.gates}
    paths = {**models, **gates}.items()
    return {name: f"{RESULTS}/{stage}/{path}.parquet" for name, path in paths}
