"""Systems of the experiment: which job answers for one, with what, and after which lengths."""

from needlework.config.models import Derived
from needlework.config.attention import BlockSparse


def modules_of(system):
    """Modules of the attention that a system is, and of its model's."""
    own = (
        []
        if system.attention is None
        else [system.attention.module]
    )
    return sorted({*own, *model_modules(system.model)})


def system_modules(name):
    """Modules of the attention systems that evaluating system `name` runs through."""
    return modules_of(experiment.systems[name])


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


def allows_extrapolation(system):
    """Whether lengths past the positions of a system's model, or of one it came from, are meant."""
    model = experiment.models[experiment.systems[system].model]
    while isinstance(model, Derived) and not model.allow_extrapolation:
        model = experiment.models[model.base]
    return model.allow_extrapolation


def api_systems():
    """Systems that answer through an API."""
    return [name for name in experiment.systems if experiment.is_api(name)]


def local_systems():
    """Systems that run on this machine or its cluster."""
    return [name for name in experiment.systems if not experiment.is_api(name)]


def sharded_systems():
    """Systems whose cells are answered by several jobs."""
    systems = experiment.systems.items()
    return [name for name, system in systems if opening_of(system.model).dp > 1]


def whole_systems():
    """Systems whose cells are answered by one job that opens a model."""
    others = [*sharded_systems(), *api_systems()]
    return [name for name in experiment.systems if name not in others]


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


def shards_of(w, table):
    """One table of every job that answers a share of a cell, in the samples' order."""
    return expand(
        f"{RESULTS}/shards/{w.system}/{w.task}/{w.length}/{{shard}}/{table}.parquet",
        shard=range(opening_of(experiment.systems[w.system].model).dp),
    )


def samples_of(system, task, length):
    """The samples that `system` answers: those of its model's tokenizer."""
    tokenizer = experiment.root_model(experiment.systems[system].model)
    return f"{RESULTS}/samples/{tokenizer}/{task}/{length}.parquet"


def rungs_before(stage, w, count):
    """Tables of the same system and task at the `count` next shorter lengths, shortest first; none
    where the system climbs no early_stopping."""
    lengths = [
        length for length in sorted(experiment.lengths) if length < int(w.length)
    ]
    if experiment.early_stopping_of(w.system) is None:
        return []
    return [
        f"{RESULTS}/{stage}/{w.system}/{w.task}/{length}.parquet"
        for length in lengths[-count:]
    ]


def early_stopping_of(w):
    """What decides whether a system may be asked at the next length; None: it always may."""
    early_stopping = experiment.early_stopping_of(w.system)
    if early_stopping is None:
        return None
    return {"min_accuracy": early_stopping.min_accuracy, "metric": experiment.tasks[w.task].metric}
