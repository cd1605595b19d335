"""Trainings of the experiment: their rows, their validation, their tables."""

from pathlib import Path

from needlework.config.models import Pretrained


def recipe_of(model):
    """How `model`, which this experiment trains, is trained."""
    found = experiment.models[model]
    return found.pretrain if isinstance(found, Pretrained) else found.finetune


def training_modules(model):
    """Modules that training `model` runs through, beside its script's own."""
    validation = (
        ["needlework.evaluation.streaming.held_out"] if recipe_of(model).validate_every else []
    )
    return [*model_modules(model), *validation]


def seed_of(recipe):
    """The seed of a recipe: its own, or the experiment's."""
    return experiment.seed if recipe.seed is None else recipe.seed


def rows_of(model, *data):
    """The rows of finetune_data that `model` is trained on, in its tokenizer's lengths."""
    folder = f"{RESULTS}/finetune_data/{experiment.root_model(model)}"
    return [f"{folder}/{name}.parquet" for name in data]


def training_rows():
    """tokenizer/data of everything that this experiment fine-tunes or distils on."""
    models = experiment.models
    trained = [(name, models[name].finetune.data_weights) for name in finetuned_models()]
    trained += [
        (gates.model, gates.distill.data) for gates in experiment.gates.values()
    ]
    found = [
        f"{experiment.root_model(model)}/{name}"
        for model, data in trained
        for name in data
    ]
    return list(dict.fromkeys(found))


def checked_rows():
    """Those of them with questions and answers, in a tokenizer that samples are made in."""
    sampled = {experiment.root_model(s.model) for s in experiment.systems.values()}
    return [
        str(rows)
        for rows in map(Path, training_rows())
        if rows.parent.name in sampled
        and experiment.finetune_data[rows.name].has_answers
    ]


def task_of(data):
    """The task whose rows finetune_data `data` has; None: it is none of the file's."""
    return getattr(experiment.finetune_data[data], "task", None)


def held_out_files(model):
    """The token ids that `model` is validated on, and where their documents begin."""
    stream, folder = recipe_of(model).validation, f"{RESULTS}/tokens"
    files = [] if stream is None else ["0.npy", "0.starts.npy"]
    return [
        f"{folder}/{experiment.root_model(model)}/{stream}/{file}" for file in files
    ]


def validation_of(model):
    """What validates `model` while it is trained, and what that is made with; None: nothing."""
    recipe = recipe_of(model)
    if not recipe.validate_every:
        return None
    stream, (tokens, starts) = (
        experiment.streams[recipe.validation],
        held_out_files(model),
    )
    keys = ("chunk_size", "overlap", "separate_documents", "adaptive")
    arguments = {
        "tokens": tokens,
        "starts": starts,
        "max_tokens": recipe.validation_tokens,
        "settings": {key: getattr(stream, key) for key in keys},
    }
    return ["needlework.evaluation.streaming.held_out:HeldOut", arguments]


def training_tables(stage="training"):
    """One stage's table of everything that this experiment trains, by name in the figure."""
    models = {name: name for name in (*pretrained_models(), *finetuned_models())}
    gates = {f"gates {name}": f"gates/{name}" for name in experiment.gates}
    paths = {**models, **gates}.items()
    return {name: f"{RESULTS}/{stage}/{path}.parquet" for name, path in paths}
