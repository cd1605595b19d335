"""Systems of the experiment: which rule evaluates each, with what, after which lengths."""

from needlework.config.saved_gates import saved_gates


def system_of(wildcards):
    """System {system}: the experiment's, or one that only stream {stream} defines."""
    if wildcards.system in experiment.systems:
        return experiment.systems[wildcards.system]
    return experiment.streams[wildcards.stream].read_by(wildcards.system)


def system_model(wildcards):
    """How to open the model of system {system}."""
    return model_spec(system_of(wildcards).model).dump()


def system_model_files(wildcards):
    """The files of that model."""
    return model_files(system_of(wildcards).model)


def system_modules(wildcards):
    """Modules of the attention of system {system} and of its model."""
    system = system_of(wildcards)
    own = [] if system.attention is None else [system.attention.module]
    return sorted({*own, *model_modules(system.model)})


def gates_folder(system):
    """The folder with the gates that a system chooses blocks by; None if it uses none."""
    name = None if system.attention is None else system.attention.gates_name
    return f"{RESULTS}/gates/{name}" if name in experiment.gates else name


def system_gates(wildcards):
    """The gates of system {system}: made by a rule, or found in the user's folder."""
    system = system_of(wildcards)
    folder = gates_folder(system)
    if folder is None:
        return []
    files = ["gates.safetensors", "gates.json"]
    if system.attention.gates_name not in experiment.gates:
        saved = saved_gates(folder)
        files = [saved.weights, saved.description]
    return [f"{folder}/{file}" for file in files]


def system_attention(wildcards):
    """Parameters of the attention of system {system}, with the folder of its gates."""
    system = system_of(wildcards)
    attention, folder = dump(system.attention), gates_folder(system)
    return attention if folder is None else {**attention, "gates": folder}


def allows_extrapolation(wildcards):
    """Whether system {system} may read past the positions of its model."""
    ancestors = experiment.ancestors(experiment.systems[wildcards.system].model)
    return any(model.local.allow_extrapolation for _, model in ancestors)


def thinking_tokens(wildcards):
    """Most reasoning tokens before an answer of system {system}."""
    root = experiment.root_model(experiment.systems[wildcards.system].model)
    chat = experiment.models[root].chat
    return 0 if chat is None else chat.thinking_tokens


def thought_format(wildcards):
    """Format of the reasoning of system {system}, if its model's entry names one."""
    root = experiment.root_model(experiment.systems[wildcards.system].model)
    thoughts = experiment.models[root].thoughts
    return None if thoughts is None else thoughts.model_dump()


def system_devices(wildcards):
    """GPUs, or else threads, of a job that evaluates system {system}."""
    return experiment.model_of(wildcards.system).local.opening.devices


def sample_shards(wildcards):
    """Jobs that split the samples of a cell of system {system}."""
    return experiment.model_of(wildcards.system).local.opening.dp


def api_of(wildcards):
    """The API of system {system}, with its settings."""
    return dump(experiment.model_of(wildcards.system).remote)


def api_lock(wildcards):
    """The lock file that lets one job at a time call the API of system {system}."""
    return f"{RESULTS}/.{experiment.systems[wildcards.system].model}.lock"


def api_systems():
    """Systems that answer through an API."""
    return [name for name in experiment.systems if experiment.model_of(name).remote]


def local_systems():
    """Systems that run on this machine or its cluster."""
    return [name for name in experiment.systems if experiment.model_of(name).local]


def sharded_systems():
    """Systems whose cells are answered by several jobs."""
    return [
        name
        for name in local_systems()
        if experiment.model_of(name).local.opening.dp > 1
    ]


def unsharded_systems():
    """Systems whose cells are each answered by one job that opens a model."""
    return [name for name in local_systems() if name not in sharded_systems()]


def sparse_systems():
    """Systems that skip pairs of query and key, so that their measured density is below 1."""
    return [
        name
        for name, system in experiment.systems.items()
        if system.attention is not None and system.attention.skips_pairs
    ]


def dense_system():
    """The system whose accuracy is the target of sparse ones: the baseline, or the first dense."""
    dense = [
        name
        for name in local_systems()
        if experiment.systems[name].attention is None
        and not model_modules(experiment.systems[name].model)
    ]
    return (
        experiment.baseline if experiment.baseline in dense else next(iter(dense), None)
    )


def before_finetuning():
    """Systems of fine-tuned models, each with the system of the nearest model it starts from.

    Both use their model's own attention.
    """
    plain = {}
    for name, system in experiment.systems.items():
        if system.attention is None:
            plain.setdefault(system.model, name)
    pairs = {}
    for model, name in plain.items():
        _, *ancestors = (ancestor for ancestor, _ in experiment.ancestors(model))
        for ancestor in ancestors:
            if ancestor in plain:
                pairs[name] = plain[ancestor]
                break
    return pairs


def shards_of(table):
    """A function of wildcards: one table of every shard of system {system}, in order."""

    def tables(wildcards):
        return expand(
            f"{RESULTS}/shards/{wildcards.system}/{{shard}}/{table}.parquet",
            shard=range(sample_shards(wildcards)),
        )

    return tables


def samples_in_tokenizer_of(system, task, length):
    """The samples of a cell that a system answers: those in its model's tokenizer."""
    tokenizer = experiment.root_model(experiment.systems[system].model)
    return f"{RESULTS}/samples/{tokenizer}/{task}/{length}.parquet"


def samples_of_system(wildcards):
    """The samples of every cell of system {system}."""
    return [
        samples_in_tokenizer_of(wildcards.system, task, length)
        for task, length in CELLS
    ]


def samples_of_cell(wildcards):
    """The samples of {task} at {length} that system {system} answers."""
    return samples_in_tokenizer_of(wildcards.system, wildcards.task, wildcards.length)


SCORER = "needlework.scoring.score"
"""Module that scores answers while a system is evaluated, for early stopping."""


def stop_rule(wildcards):
    """What stops system {system} at a task; None evaluates every length."""
    early_stopping = experiment.early_stopping_of(wildcards.system)
    if early_stopping is None:
        return None
    return {
        "min_accuracy": early_stopping.min_accuracy,
        "metrics": METRICS,
        "scorer": SCORER,
    }


def scorer_modules(wildcards):
    """That module, if system {system} may stop early."""
    return [] if stop_rule(wildcards) is None else [SCORER]


def evaluation_modules(wildcards):
    """Modules that evaluating system {system} runs, in addition to its script's."""
    return [*system_modules(wildcards), *scorer_modules(wildcards)]


def systems_of_model(wildcards):
    """Systems that are model {model} with its own attention."""
    return [
        name
        for name, system in experiment.systems.items()
        if system.model == wildcards.model and system.attention is None
    ]
