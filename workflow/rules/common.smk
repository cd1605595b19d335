import json
import re
from pathlib import Path

from needlework.config.models import Api, Checkpoint, Derived, Pretrained
from needlework.config.opening import Opening
from needlework.config.systems import BlockSparse
from needlework.reservations import Reservations

RESERVED = Reservations(experiment)
MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


wildcard_constraints:
    system="|".join(map(re.escape, [*experiment.systems, *experiment.stream_systems()])),
    model="|".join(map(re.escape, experiment.models)),
    task="|".join(map(re.escape, experiment.tasks)),
    tokenizer="|".join(map(re.escape, experiment.models)),
    haystack="|".join(map(re.escape, experiment.haystacks)) or "none",
    gates="|".join(map(re.escape, experiment.gates)) or "none",
    data="|".join(map(re.escape, experiment.finetune_data)) or "none",
    stream="|".join(map(re.escape, experiment.streams)) or "none",
    shard=r"\d+",
    length=r"\d+",


def dump(part):
    """The keys of a part of the experiment as a rule's param, so that an edit reruns its readers."""
    return None if part is None else part.model_dump(mode="json")


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


def haystack_files(name):
    """The user's files of haystack `name`; none where it is a hub's."""
    return files_below(experiment.haystacks[name].path)


def files_below(path):
    """A file, or those of a folder, hidden ones left out; none where there is neither."""
    path = Path(path)
    if not path.is_dir():
        return [str(path)] if path.is_file() else []
    found = (file for file in path.rglob("*") if file.is_file())
    hidden = re.compile(r"(^|/)\.")
    return sorted(
        str(file) for file in found if not hidden.search(str(file.relative_to(path)))
    )


def haystack_of(tokenizer, task, length):
    """The sentences that `task` hides its needles in, if they are of the user's text."""
    name = getattr(experiment.tasks.get(task), "haystack", None)
    found = [name] if name in experiment.haystacks else []
    return expand(
        f"{RESULTS}/haystacks/{{tokenizer}}/{{haystack}}/{{length}}.parquet",
        tokenizer=tokenizer,
        haystack=found,
        length=length,
    )


def model_modules(name):
    """Modules of the attention that is part of model `name`, or of one that it came from."""
    model, modules = experiment.models[name], []
    while isinstance(model, Derived):
        if model.attention is not None:
            modules.append(f"needlework.attention.{model.attention.type}")
        model = experiment.models[model.base]
    if isinstance(model, Checkpoint) and (Path(model.path) / "config.json").is_file():
        attention = json.loads((Path(model.path) / "config.json").read_text())
        if "needlework_attention" in attention:
            modules.append(f"needlework.attention.{attention['needlework_attention']}")
    return sorted(set(modules))


def system_modules(name):
    """Modules of the attention systems that evaluating system `name` runs through."""
    return modules_of(experiment.systems[name])


def modules_of(system):
    """Modules of the attention that a system is, and of its model's."""
    own = (
        []
        if system.attention is None
        else [f"needlework.attention.{system.attention.type}"]
    )
    return sorted({*own, *model_modules(system.model)})


def gates_path(system):
    """The folder of the gates that a system chooses blocks with; None: it has none."""
    name = getattr(system.attention, "gates", None)
    return f"{RESULTS}/gates/{name}" if name in experiment.gates else name


def gates_files(system):
    """The gates of a system, as inputs: made by this workflow, or found in the user's folder."""
    path = gates_path(system)
    files = [] if path is None else ["gates.safetensors", "gates.json"]
    return [f"{path}/{file}" for file in files]


def attention_of(system):
    """The parameters of a system's attention, its gates as the folder that they lie in."""
    found, path = dump(system.attention), gates_path(system)
    return found if path is None else {**found, "gates": path}


def allows_pickle(model):
    """Whether weights of model `model` may be read from pickle files."""
    return getattr(experiment.models[model], "allow_pickle", False)


def opening_of(model):
    """How model `model` is held in memory: as a `path` model says, or plainly."""
    return getattr(experiment.models[model], "opening", Opening())


def dump_opening(model):
    """The keys of it that a job which opens the model reads."""
    return opening_of(model).model_dump(mode="json", exclude={"dp"})


def is_beyond_positions(system):
    """Whether lengths past the positions of a system's model, or of one it came from, are meant."""
    model = experiment.models[experiment.systems[system].model]
    while isinstance(model, Derived) and not model.beyond_positions:
        model = experiment.models[model.base]
    return model.beyond_positions


def sharded_systems():
    """Systems whose cells are answered by several jobs."""
    systems = experiment.systems.items()
    return [name for name, system in systems if opening_of(system.model).dp > 1]


def whole_systems():
    """Systems whose cells are answered by one job that opens a model."""
    others = [*sharded_systems(), *api_systems()]
    return [name for name in experiment.systems if name not in others]


def shards_of(w, table):
    """One table of every job that answers a share of a cell, in the samples' order."""
    return expand(
        f"{RESULTS}/shards/{w.system}/{w.task}/{w.length}/{{shard}}/{table}.parquet",
        shard=range(opening_of(experiment.systems[w.system].model).dp),
    )


def task_modules(name):
    """Modules that make the samples of task `name`."""
    return [f"needlework.tasks.{experiment.tasks[name].module}"]


def data_files(name):
    """The user's files of finetune_data `name`; none where rows are generated, or a hub's."""
    path = getattr(experiment.finetune_data[name], "path", None)
    return [] if path is None else files_below(path)


def data_modules(name):
    """Modules that make the rows of finetune_data `name`."""
    data = experiment.finetune_data[name]
    own = [] if data.type != "task" else task_modules(data.task)
    return [f"needlework.tasks.{data.module}", *own]


def api_systems():
    """Systems that answer through an API."""
    return [name for name in experiment.systems if experiment.is_api(name)]


def local_systems():
    """Systems that run on this machine or its cluster."""
    return [name for name in experiment.systems if not experiment.is_api(name)]


def samples_of(system, task, length):
    """The samples that `system` answers: those of its model's tokenizer."""
    tokenizer = experiment.root_model(experiment.systems[system].model)
    return f"{RESULTS}/samples/{tokenizer}/{task}/{length}.parquet"


def cells(stage, systems=None):
    """Paths of one stage's tables, over systems, tasks and lengths in the experiment's order."""
    return expand(
        f"{RESULTS}/{stage}/{{system}}/{{task}}/{{length}}.parquet",
        system=experiment.systems if systems is None else systems,
        task=experiment.tasks,
        length=experiment.lengths,
    )


def stream_files(name):
    """The user's files of stream `name`; none where it is generated, or a hub's."""
    path = experiment.streams[name].path
    return [] if path is None else files_below(path)


def dump_text_of(stream):
    """The keys of a stream that say what its text is, as a rule's param."""
    read = {
        "separate_documents",
        "chunk_size",
        "overlap",
        "adaptive",
        "systems",
        "shards",
    }
    found = dump(experiment.streams[stream])
    kept = {key: value for key, value in found.items() if key not in read}
    # Documents are dealt out, so all shards change with their number; generated ones do not.
    return {**kept, "shards": found["shards"] if found["path"] is not None else 1}


def streamed(w):
    """The system that reads a stream: one of the experiment's, or of the stream's own."""
    return experiment.systems.get(w.system) or experiment.streams[w.stream].read_by(
        w.system
    )


def tokens_of(w, suffix):
    """A file of the token ids that a system reads: in its model's tokenizer."""
    tokenizer = experiment.root_model(streamed(w).model)
    return f"{RESULTS}/tokens/{tokenizer}/{w.stream}/{w.shard}{suffix}"


def reading_of(w):
    """How a system reads a stream: arguments of a StreamingEvaluator."""
    stream = experiment.streams[w.stream]
    how = stream.read_by(w.system)
    return {
        "chunk_size": how.chunk_size,
        "overlap": how.overlap,
        "windows_at_once": how.windows_at_once,
        "separate_documents": stream.separate_documents,
        "adaptive": stream.adaptive,
    }


def stream_tables(stage):
    """Paths of one stage's tables of streams, in the experiment's order."""
    return [
        f"{RESULTS}/{stage}/{system}/{name}/{shard}.parquet"
        for name, stream in experiment.streams.items()
        for system in stream.systems or experiment.systems
        for shard in range(stream.shards)
    ]


def rungs_before(stage, w, count):
    """Tables of the same system and task at the `count` next shorter lengths, shortest first; none
    where the system climbs no ladder."""
    lengths = [
        length for length in sorted(experiment.lengths) if length < int(w.length)
    ]
    if experiment.ladder_of(w.system) is None:
        return []
    return [
        f"{RESULTS}/{stage}/{w.system}/{w.task}/{length}.parquet"
        for length in lengths[-count:]
    ]


def ladder_of(w):
    """What decides whether a system may be asked at the next length; None: it always may."""
    ladder = experiment.ladder_of(w.system)
    if ladder is None:
        return None
    return {"floor": ladder.floor, "metric": experiment.tasks[w.task].metric}


def sparse_systems():
    """Systems that leave pairs of query and key out: those whose density is measured below 1."""
    return [
        name
        for name, system in experiment.systems.items()
        if isinstance(system.attention, BlockSparse)
        and getattr(system.attention, "density", None) != 1
    ]


def dense_system():
    """The system whose accuracy sparse ones are to reach: the baseline if dense, or the first."""
    dense = [
        name
        for name, system in experiment.systems.items()
        if system.attention is None
        and not model_modules(system.model)
        and not experiment.is_api(name)
    ]
    return (
        experiment.baseline if experiment.baseline in dense else next(iter(dense), None)
    )


def pretrained_models():
    """Models that this experiment makes from nothing."""
    return [name for name, m in experiment.models.items() if isinstance(m, Pretrained)]


def finetuned_models():
    """Models that this experiment fine-tunes."""
    return [name for name, m in experiment.models.items() if isinstance(m, Derived)]


def before_finetuning():
    """Systems of fine-tuned models, each with that of the nearest model that it came from; both
    under the models' own attention."""
    plain = {}
    for name, system in experiment.systems.items():
        if system.attention is None:
            plain.setdefault(system.model, name)
    found = {}
    for model, name in plain.items():
        at = model
        while isinstance(experiment.models[at], Derived) and name not in found:
            at = experiment.models[at].base
            if at in plain:
                found[name] = plain[at]
    return found


def recipe_of(model):
    """How `model`, which this experiment trains, is trained."""
    found = experiment.models[model]
    return found.pretrain if isinstance(found, Pretrained) else found.finetune


def training_modules(model):
    """Modules that training `model` runs through, beside its script's own."""
    validation = (
        ["needlework.evaluation.held_out"] if recipe_of(model).validate_every else []
    )
    return [*model_modules(model), *validation]


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
        "most_tokens": recipe.validation_tokens,
        "reading": {key: getattr(stream, key) for key in keys},
    }
    return ["needlework.evaluation.held_out:HeldOut", arguments]


def rows_of(model, *data):
    """The rows of finetune_data that `model` is trained on, in its tokenizer's lengths."""
    folder = f"{RESULTS}/finetune_data/{experiment.root_model(model)}"
    return [f"{folder}/{name}.parquet" for name in data]


def seed_of(recipe):
    """The seed of a recipe: its own, or the experiment's."""
    return experiment.seed if recipe.seed is None else recipe.seed


def training_rows():
    """tokenizer/data of everything that this experiment fine-tunes or distils on."""
    models = experiment.models
    trained = [(name, models[name].finetune.weights) for name in finetuned_models()]
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


def training_tables(stage="training"):
    """One stage's table of everything that this experiment trains, by name in the figure."""
    models = {name: name for name in (*pretrained_models(), *finetuned_models())}
    gates = {f"gates {name}": f"gates/{name}" for name in experiment.gates}
    paths = {**models, **gates}.items()
    return {name: f"{RESULTS}/{stage}/{path}.parquet" for name, path in paths}


def training_steps():
    """Optimizer steps of everything that this experiment trains, by name in the figure."""
    models = {name: experiment.models[name] for name in pretrained_models()}
    steps = {
        name: sum(stage.steps for stage in m.pretrain.stages)
        for name, m in models.items()
    }
    for name in finetuned_models():
        recipe = experiment.models[name].finetune
        steps[name] = sum(stage.steps for stage in (*recipe.curriculum, recipe))
    distilled = {
        f"gates {name}": g.distill.steps for name, g in experiment.gates.items()
    }
    return {**steps, **distilled}


def tables():
    """The tables that the report shows, the most telling first."""
    paired = experiment.baseline is not None and len(experiment.systems) > 1
    names = ["effective_length"] if len(experiment.lengths) > 1 else []
    names += ["comparison", "comparison_speed"] if paired else []
    names += ["streams"] if experiment.streams else []
    names += ["failures"] if api_systems() else []
    names += ["mean_scores"] if len(experiment.lengths) > 1 else []
    return [f"{RESULTS}/{name}.csv" for name in (*names, "plan", "needles", "summary")]


def targets():
    """Everything that `rule all` wants."""
    mapped = [name for name, task in experiment.tasks.items() if task.has_depths]
    figures = [*(f"heatmap/{task}" for task in mapped), "accuracy", "cost"]
    figures += ["effective_length"] if len(experiment.lengths) > 1 else []
    figures += ["memory"] if local_systems() else []
    figures += ["training", "training_cost"] if training_tables() else []
    figures += ["finetuning"] if mapped and before_finetuning() else []
    figures += ["density"] if sparse_systems() else []
    figures += ["pareto"] if len(sparse_systems()) > 1 else []
    figures += ["stream_perplexity", "stream_cost"] if experiment.streams else []
    wanted = expand(
        f"{RESULTS}/figures/{{figure}}.{{kind}}",
        figure=figures,
        kind=["html", "svg", "png"],
    )
    wanted += [f"{RESULTS}/{name}" for name in ("summary.parquet", "summary.csv")]
    wanted += [f"{RESULTS}/{name}" for name in ("experiment.yaml", "software.csv")]
    wanted += [f"{RESULTS}/plan.csv"]
    wanted += [f"{RESULTS}/tables.html"]
    if experiment.baseline is not None and len(experiment.systems) > 1:
        wanted += [f"{RESULTS}/{name}" for name in ("comparison.json", "comparison.md")]
        wanted += [f"{RESULTS}/comparison_speed.csv"]
    wanted += [f"{RESULTS}/training_rows/{rows}.csv" for rows in checked_rows()]
    if api_systems():
        wanted += [f"{RESULTS}/failures.csv"]
    if experiment.streams:
        wanted += [f"{RESULTS}/streams.csv"]
    if experiment.package is not None:
        wanted += [f"{RESULTS}/package/{experiment.package}/README.md"]
    return wanted
