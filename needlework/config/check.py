"""What no single key can tell: names that lead nowhere, combinations that cannot work."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from needlework.config.check_opening import opening_problems
from needlework.config.devices import devices
from needlework.config.experiment import Experiment
from needlework.config.models import Api, Checkpoint, Derived, Pretrained
from needlework.config.systems import Attention, InfiniAlignment
from needlework.config.tasks import BUILT_IN_HAYSTACKS, RowExamples, TaskExamples, TextExamples
from needlework.config.training import Distill, Finetune, FinetuneStage, Loop, Stage

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
Problem = tuple[tuple[str | int, ...], str]
"""Where in the file, and what is wrong with the remedy."""


def one_of(names: Iterable[str], wrong: str = "") -> str:
    """`write one of a, b`, the nearest to `wrong` put first as a guess."""
    names = list(names)
    near = difflib.get_close_matches(str(wrong), names, n=1)
    guess = f"did you mean `{near[0]}`? " if near else ""
    return f"{guess}write one of {', '.join(names)}" if names else "there is none to name"


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Everything that is wrong with a well-typed experiment, in the file's order."""
    models = list(_models(experiment))
    yield from models
    for name, data in experiment.finetune_data.items():
        where = ("finetune_data", name)
        if isinstance(data, TaskExamples) and data.task not in experiment.tasks:
            yield (*where, "task"), "names no task; " + one_of(experiment.tasks, data.task)
        if isinstance(data, RowExamples | TextExamples):
            yield from _source((*where, "path"), data.path)
    if not models:
        yield from opening_problems(experiment)
        yield from _own_attention(experiment)
    yield from _gates(experiment)
    yield from _systems(experiment)
    yield from _haystacks(experiment)
    yield from _tasks(experiment)
    yield from _streams(experiment)
    for name, system in experiment.systems.items():
        if system.ladder and experiment.ladder is None:
            yield (
                ("systems", name, "ladder"),
                "needs the experiment's; write ladder: true beside lengths",
            )
    if not models:
        yield from _validation(experiment)
        yield from _grid(experiment)


def _models(experiment: Experiment) -> Iterator[Problem]:
    for name, model in experiment.models.items():
        where = ("models", name)
        if isinstance(model, Derived):
            yield from _derived(experiment, name, model)
        elif isinstance(model, Checkpoint) and Path(model.path).exists():
            for file in ("config.json", "tokenizer.json"):
                if not (Path(model.path) / file).is_file():
                    yield (*where, "path"), f"has no {file}; name a Hugging Face checkpoint folder"
                elif file == "config.json" and _mapping(Path(model.path) / file) is None:
                    yield (*where, "path"), f"has a {file} that is no JSON object; fetch it again"
            yield from _weights((*where, "path"), model)
        elif isinstance(model, Checkpoint) and not is_hub_name(model.path):
            yield (*where, "path"), "no such folder; name an existing one, or a hub's owner/name"
        if isinstance(model, Checkpoint):
            yield from _chat(where, model)
        if isinstance(model, Api):
            yield from _api(experiment, where, model)
        if isinstance(model, Pretrained):
            yield from _processes((*where, "pretrain"), model.pretrain, model.pretrain.stages)
    made = [name for name, m in experiment.models.items() if isinstance(m, Pretrained)]
    if experiment.package is not None and experiment.package not in made:
        yield ("package",), "names no pretrained model; " + one_of(made, experiment.package)


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
        yield at, f"names no model; {one_of(names, name)}, or a folder with a tokenizer.json"


def _has_no_weights(experiment: Experiment, name: str | None) -> bool:
    return isinstance(experiment.models.get(name), Api)


_ELSEWHERE = "is behind an API, so its weights are not here; name another model"


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
        found = _mapping(config) if config.is_file() else {}
        if found is None:
            what = "has a tokenizer_config.json that is no JSON object; fetch it again"
            yield (*where, "path"), what
        elif "chat_template" not in found:
            yield (
                (*where, "chat_template"),
                f"has no template: {folder} has neither chat_template.jinja nor one in "
                "tokenizer_config.json; write false, or name an instruct model",
            )


def is_hub_name(path: str) -> bool:
    """Whether a path that is not there may be an owner/name of the hub."""
    return bool(_HUB_NAME.fullmatch(path)) and not Path(path).parent.is_dir()


def _mapping(file: Path) -> dict | None:
    """The mapping that the file holds as JSON; None where it is none."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _derived(experiment: Experiment, name: str, model: Derived) -> Iterator[Problem]:
    where = ("models", name)
    if model.base not in experiment.models:
        others = [other for other in experiment.models if other != name]
        yield (*where, "base"), "names no model; " + one_of(others, model.base)
        return
    if _has_no_weights(experiment, model.base):
        yield (*where, "base"), _ELSEWHERE
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
    yield from _processes((*where, "finetune"), recipe, [*recipe.curriculum, recipe])
    yield from _rows(experiment, (*where, "finetune"), recipe)


def _rows(
    experiment: Experiment, where: tuple[str, ...], recipe: Finetune | Distill
) -> Iterator[Problem]:
    distils = isinstance(recipe, Distill)
    for i, name in enumerate(recipe.data if distils else recipe.weights):
        data = experiment.finetune_data.get(name)
        at = (*where, "data", i) if distils else (*where, "data")
        if data is None:
            yield at, "names no finetune_data; " + one_of(experiment.finetune_data, name)
        elif distils and not data.has_answers:
            yield at, "is text, without the answers that gates are taught by; name other rows"
        elif (longest := max(data.lengths)) > recipe.sequence_length:
            yield (
                (*where, "sequence_length"),
                f"is below the {longest} tokens of finetune_data.{name}; "
                f"write at least {longest}, or shorten the data",
            )


def _gates(experiment: Experiment) -> Iterator[Problem]:
    for name, gates in experiment.gates.items():
        where = ("gates", name)
        if gates.model not in experiment.models:
            yield (*where, "model"), "names no model; " + one_of(experiment.models, gates.model)
        if _has_no_weights(experiment, gates.model):
            yield (*where, "model"), _ELSEWHERE
        for i, stage in enumerate(gates.stages):
            if stage in gates.stages[:i]:
                yield (*where, "stages", i), "stands twice; write it once"
        yield from _processes((*where, "distill"), gates.distill, [gates.distill])
        yield from _rows(experiment, (*where, "distill"), gates.distill)


def _validation(experiment: Experiment) -> Iterator[Problem]:
    for name, model in experiment.models.items():
        if isinstance(model, Checkpoint | Api):
            continue
        key = "finetune" if isinstance(model, Derived) else "pretrain"
        where, recipe = ("models", name, key), getattr(model, key)
        stream = experiment.streams.get(recipe.validation)
        if recipe.validation is not None and stream is None:
            near = one_of(experiment.streams, recipe.validation)
            yield (*where, "validation"), "names no stream; " + near
        elif stream is None:
            if recipe.validate_every:
                what = "needs a text; name one of streams under validation, or write 0"
                yield (*where, "validate_every"), what
        elif not recipe.validate_every:
            what = "is never read; write validate_every too, or leave it out"
            yield (*where, "validation"), what
        elif not stream.overlap:
            limit, tokens = max_positions(experiment, name), recipe.validation_tokens
            if limit is not None and min(tokens, stream.tokens or tokens) > limit:
                yield (
                    (*where, "validation_tokens"),
                    f"goes beyond the {limit} positions of the model; write at most {limit}, or "
                    f"give streams.{recipe.validation} an overlap",
                )


def _processes(
    where: tuple[str, ...], recipe: Loop, stages: list[FinetuneStage | Stage]
) -> Iterator[Problem]:
    parts = recipe.processes * recipe.gradient_accumulation_steps
    fewest = min(stage.rows if isinstance(stage, Stage) else stage.batch_size for stage in stages)
    if fewest < parts:
        key = "processes" if recipe.processes > fewest else "gradient_accumulation_steps"
        yield (
            (*where, key),
            f"shares the rows of a step among {parts}, and a stage has {fewest}; write processes "
            f"times gradient_accumulation_steps of at most {fewest}",
        )
    file = getattr(recipe, "accelerate_config", None)
    if file is not None and not Path(file).is_file():
        yield (*where, "accelerate_config"), "no such file; name one that `accelerate config` wrote"


def _systems(experiment: Experiment) -> Iterator[Problem]:
    for name, system in experiment.systems.items():
        where = ("systems", name)
        if system.model not in experiment.models:
            yield (
                (*where, "model"),
                "names no model; " + one_of(experiment.models, system.model),
            )
        if system.attention is not None and system.attention.converts_model:
            yield (
                (*where, "attention", "type"),
                "is part of a model's weights; write it under models, with a `base`",
            )
        if system.attention is not None and _has_no_weights(experiment, system.model):
            yield (*where, "attention"), "is for models whose weights are here; leave it out"
        elif system.attention is not None and system.attention.type == "seer":
            yield from _seer(experiment, where, system.model, system.attention)
    if experiment.baseline is not None and experiment.baseline not in experiment.systems:
        family = [n for n, s in experiment.systems.items() if s.family == experiment.baseline]
        named = "several systems" if family else "no system"
        yield (
            ("baseline",),
            f"names {named}; " + one_of(family or experiment.systems, experiment.baseline),
        )


def _seer(
    experiment: Experiment, where: tuple[str, ...], model: str, attention: Attention
) -> Iterator[Problem]:
    """Whether the gates are there and fit."""
    at = (*where, "attention", "gates")
    gates = experiment.gates.get(attention.gates)
    if gates is not None:
        size, stages = gates.block_size, gates.stages
        if gates.model != model:
            yield at, f"are gates of model `{gates.model}`; name gates of `{model}`, or that model"
    elif not (folder := Path(attention.gates)).is_dir():
        yield (
            at,
            f"names no gates; {one_of(experiment.gates, attention.gates)}, or a folder of them",
        )
        return
    elif missing := [f for f in ("gates.json", "gates.safetensors") if not (folder / f).is_file()]:
        yield at, f"has no {missing[0]}; name a folder that distilled gates were saved in"
        return
    elif (found := _mapping(folder / "gates.json")) is None:
        yield at, "has a gates.json that is no JSON object; fetch it again"
        return
    else:
        size, stages = found.get("block_size"), found.get("stages")
        if type(size) is not int or size < 1 or not isinstance(stages, list):
            yield (
                at,
                "has a gates.json without block_size or stages; distil or copy the gates again",
            )
            return
    for stage, is_dense in (("prefill", attention.skip_prefill), ("decode", attention.skip_decode)):
        if not is_dense and stage not in stages:
            yield (
                at,
                f"has none for {stage}; write skip_{stage}: true, or name gates with that stage",
            )
    if size != attention.block_size:
        yield (
            (*where, "attention", "block_size"),
            f"is not the block size of the gates; write {size}, or name other gates",
        )


def _own_attention(experiment: Experiment) -> Iterator[Problem]:
    """Whether a system or gates are for a model whose attention was converted already."""
    for name, gates in experiment.gates.items():
        if found := _converted(experiment, gates.model):
            at, kind = found
            yield (
                ("gates", name, "model"),
                f"has {kind} as its own attention, by models.{at}; name a model that has none",
            )
    for name, system in experiment.systems.items():
        if system.attention is None or system.attention.converts_model:
            continue
        if isinstance(system.attention, InfiniAlignment):
            if (_converted(experiment, system.model) or (None, None))[1] != "infini":
                yield (
                    ("systems", name, "attention", "type"),
                    f"is for Infini models and {system.model} is none; name another model",
                )
        elif found := _converted(experiment, system.model):
            at, kind = found
            yield (
                ("systems", name, "model"),
                f"has {kind} as its own attention, by models.{at}; leave out the system's "
                "attention, or name another model",
            )


def _converted(experiment: Experiment, name: str) -> tuple[str, str] | None:
    """The model that brought `name` an attention of its own, itself or a base, and which."""
    model = experiment.models.get(name)
    if isinstance(model, Derived):
        if model.attention is not None and model.attention.converts_model:
            return name, model.attention.type
        return _converted(experiment, model.base)
    if isinstance(model, Checkpoint) and (config := Path(model.path) / "config.json").is_file():
        kind = (_mapping(config) or {}).get("needlework_attention")
        return (name, kind) if kind else None
    return None


def _haystacks(experiment: Experiment) -> Iterator[Problem]:
    for name, haystack in experiment.haystacks.items():
        if name in BUILT_IN_HAYSTACKS and name != "essay":
            yield ("haystacks", name), "is built in; give yours another name"
        yield from _source(("haystacks", name, "path"), haystack.path)


def _source(where: tuple[str, ...], path: str) -> Iterator[Problem]:
    if not Path(path).exists() and not is_hub_name(path):
        yield where, "no such file or folder; name an existing one, or a hub's owner/name"


def _tasks(experiment: Experiment) -> Iterator[Problem]:
    for name, task in experiment.tasks.items():
        depths = getattr(task, "depths", None) or []
        for i, depth in enumerate(depths if depths != "uniform" else []):
            if depth in depths[:i]:
                yield ("tasks", name, "depths", i), "stands twice; write it once"
        haystack = getattr(task, "haystack", None)
        known = dict.fromkeys([*BUILT_IN_HAYSTACKS, *experiment.haystacks])
        if haystack is not None and haystack not in known:
            yield ("tasks", name, "haystack"), "names no haystack; " + one_of(known, haystack)
        for file in task.files:
            for length in experiment.lengths if "{length}" in file else [""]:
                if not Path(found := file.replace("{length}", str(length))).is_file():
                    yield ("tasks", name, "path"), f"no file {found}; name one that is there"
                    break


def _streams(experiment: Experiment) -> Iterator[Problem]:
    for name, stream in experiment.streams.items():
        where = ("streams", name)
        path = stream.path
        if path is not None:
            yield from _source((*where, "path"), path)
        for system in stream.systems or experiment.systems:
            own = (*where, "systems", system) if system in stream.systems else where
            how = stream.read_by(system)
            if how.model is None and system not in experiment.systems:
                yield (
                    own,
                    f"names no system; {one_of(experiment.systems, system)}, or give it a model",
                )
                continue
            if how.model is not None and system in experiment.systems:
                yield (*own, "model"), "is that of the system; leave it out, or write another name"
                continue
            if how.chunk_size is not None and how.overlap >= how.chunk_size:
                yield (
                    (*own, "overlap"),
                    f"of {how.overlap} is not below chunk_size {how.chunk_size}; write at most "
                    f"{how.chunk_size - 1}",
                )
            model = how.model or experiment.systems[system].model
            if model not in experiment.models:
                if how.model is not None:
                    yield (*own, "model"), "names no model; " + one_of(experiment.models, model)
                continue
            if _has_no_weights(experiment, model):
                at = (*own, "model") if how.model is not None else own
                yield (
                    (at, _ELSEWHERE)
                    if stream.systems
                    else (
                        where,
                        f"is read by all systems, `{system}` too, which is behind an API; "
                        "name the others under its systems",
                    )
                )
                continue
            if how.attention is not None and (how.model is None or how.attention.converts_model):
                yield (
                    (*own, "attention"),
                    "is for a system of the stream's own, put on a model; write `model` beside it, "
                    "and no attention that is part of a model's weights",
                )
            elif how.attention is not None and how.attention.type == "seer":
                yield from _seer(experiment, own, model, how.attention)
            attention = how.attention if how.model else experiment.systems[system].attention
            key = getattr(attention, "counts_on_the_end", None)
            if key is not None and not how.overlap:
                yield (
                    own,
                    f"`{key}` of system `{system}` counts on the text's end, which a stream does "
                    "not know; write 0 or leave it out there, or set an overlap here",
                )
            limit = max_positions(experiment, model)
            if limit is not None and not how.overlap and (stream.tokens or limit + 1) > limit:
                yield (
                    (*where, "tokens"),
                    f"may go beyond the {limit} positions of model `{model}`, whose state system "
                    f"`{system}` carries; write at most {limit}, an overlap for it, or "
                    f"`beyond_positions: true` in models.{model}",
                )


def _grid(experiment: Experiment) -> Iterator[Problem]:
    if experiment.device not in devices():
        yield ("device",), "names no device; " + one_of(devices(), experiment.device)
    for key in ("lengths", "depths"):
        values = getattr(experiment, key)
        if values == "uniform":
            continue
        for i, value in enumerate(values):
            if value in values[:i]:
                yield (key, i), "stands twice; write it once"
    for i, length in enumerate(experiment.lengths):
        if length < 1:
            yield ("lengths", i), "is not a number of tokens; write a whole number above 0"
        if experiment.length_unit == "characters":
            continue
        # On a ladder a length that is too long is a rung that the system does not reach.
        free = [system for system in experiment.systems if experiment.ladder_of(system) is None]
        for name in {experiment.systems[system].model: None for system in free}:
            if name not in experiment.models:
                continue
            limit = max_positions(experiment, name)
            if limit is not None and length > limit:
                yield (
                    ("lengths", i),
                    f"is beyond the {limit} positions of model `{name}`; write at most {limit}, "
                    f"or say `beyond_positions: true` in models.{name}",
                )


def max_positions(experiment: Experiment, name: str) -> int | None:
    """Positions that model `name` is made for; None where nothing says so, or more are meant."""
    model = experiment.models[name]
    if isinstance(model, Api) or model.beyond_positions:
        return None
    if isinstance(model, Derived):
        # Infini-attention counts positions within a segment, so none is ever too far.
        local = model.attention is not None and model.attention.type == "infini"
        return None if local else max_positions(experiment, model.base)
    if isinstance(model, Pretrained):
        return model.pretrain.max_positions
    config_json = Path(model.path) / "config.json"
    if not config_json.is_file():
        return None
    found = json.loads(config_json.read_text())
    if found.get("needlework_attention") == "infini":
        return None
    return found.get("text_config", found).get("max_position_embeddings")
