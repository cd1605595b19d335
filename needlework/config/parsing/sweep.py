"""Expand systems with a `sweep` into one system per combination of values."""

import re
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

from needlework.config.base import Name
from needlework.config.errors import Location, Problem

THINKING = "thinking_tokens"
"""The key of a model that a sweep can vary; the other keys are those of the attention."""
_NAME_PATTERN, _MAX_LENGTH = get_args(Name)[1].pattern, get_args(Name)[1].max_length


@dataclass
class Expansion:
    """An experiment with each sweep replaced by its systems."""

    config: Any
    problems: list[Problem] = field(default_factory=list)
    """Problems with the sweeps themselves, at their locations in the file."""
    _origins: dict[str | int, tuple[str, dict[str, int]]] = field(default_factory=dict)
    """Each expanded system: the sweep it comes from, and the index of each parameter's value."""
    _models: dict[str | int, tuple[str, Location]] = field(default_factory=dict)
    """Each model made for a sweep: its original, and the location of its thinking budget."""

    def location_in_file(self, where: Location, is_key: bool = False) -> Location:
        """The location in the file that `where` in the expanded config comes from.

        A swept parameter leads to its value in the sweep or, with `is_key`, to its key there.
        """
        if where[:1] == ("models",) and len(where) > 1 and where[1] in self._models:
            original, budget = self._models[where[1]]
            return budget if where[2:3] == (THINKING,) else ("models", original, *where[2:])
        if where[:1] != ("systems",) or len(where) < 2 or where[1] not in self._origins:
            return where
        name, indices = self._origins[where[1]]
        parameter = where[3] if where[2:3] == ("attention",) and len(where) > 3 else None
        if isinstance(parameter, str) and parameter in indices:
            sweep = ("systems", name, "sweep", parameter)
            return sweep if is_key else (*sweep, indices[parameter])
        return ("systems", name, *where[2:])


def expand(config: Any) -> Expansion:
    """Replace each system that has a `sweep` by one system per combination, in place.

    `walk: {attention: {...}, sweep: {top_k_blocks: [4, 8], heads: [sum]}}` gives
    `walk_top_k_blocks4_heads-sum` and `walk_top_k_blocks8_heads-sum`, of family `walk`. The key
    thinking_tokens is one of the model, of which each value makes a copy. Sections of the wrong
    type stay unchanged, so that validation reports them.
    """
    systems = config.get("systems") if isinstance(config, dict) else None
    if not isinstance(systems, dict):
        return Expansion(config)
    plain: dict[Any, Any] = {}
    models = config.get("models")
    models = dict(models) if isinstance(models, dict) else {}
    expansion = Expansion({**config, "systems": plain})
    made: dict[Any, Any] = {}
    for name, system in systems.items():
        if not _is_sweep(name, system):
            plain[name] = system
            continue
        problem = _problem(name, system, {*systems, *plain}, models)
        rest = {key: part for key, part in system.items() if key != "sweep"}
        if problem is not None:
            expansion.problems.append(problem)
            plain[name] = rest
            continue
        for expanded, indices in _combinations(name, system["sweep"]):
            values = {key: system["sweep"][key][i] for key, i in indices.items()}
            plain[expanded] = {"family": name, **rest}
            budget, model = values.pop(THINKING, None), rest.get("model")
            if THINKING in indices and _is_entry(models, model):
                copy = f"{model}_{_label(THINKING, budget)}"
                made[copy] = {**models[model], THINKING: budget}
                place = ("systems", name, "sweep", THINKING, indices[THINKING])
                expansion._models.setdefault(copy, (str(model), place))
                plain[expanded]["model"] = copy
            if values:
                plain[expanded]["attention"] = {**rest["attention"], **values}
            expansion._origins[expanded] = name, indices
    if made:
        expansion.config["models"] = {**models, **made}
    return expansion


def _is_sweep(name: Any, system: Any) -> bool:
    """Whether `system` has a sweep and everything needed to expand it has the right type."""
    if not (isinstance(name, str) and re.match(_NAME_PATTERN, name) and isinstance(system, dict)):
        return False
    sweep, attention = system.get("sweep"), system.get("attention")
    return (
        isinstance(sweep, dict)
        and bool(sweep)
        and isinstance(attention, dict | None)
        and all(isinstance(key, str) for key in sweep)
        and all(isinstance(values, list) and values for values in sweep.values())
        and not any(isinstance(v, list | dict) for values in sweep.values() for v in values)
    )


def _combinations(name: str, sweep: dict[str, list]) -> list[tuple[str, dict[str, int]]]:
    """Each combination: its system's name and the index of each key's value; last key fastest."""
    combinations = []
    for at in product(*(range(len(values)) for values in sweep.values())):
        indices = dict(zip(sweep, at, strict=True))
        labels = (_label(key, sweep[key][i]) for key, i in indices.items())
        combinations.append(("_".join([name, *labels]), indices))
    return combinations


def _label(key: str, value: Any) -> str:
    """Part of a system's name: `top_k_blocks4`, `heads-sum`, `stages-prefill`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{key}{value}".replace("+", "")
    word = {True: "true", False: "false", None: "null"}.get(value, value)
    return f"{key}-" + re.sub(r"[^A-Za-z0-9_.-]", "-", str(word))


def _problem(name: str, system: dict, names: set, models: dict) -> Problem | None:
    """The first problem with the sweep of system `name`; `names` are already in use."""
    where, sweep = ("systems", name, "sweep"), system["sweep"]
    attention = system.get("attention")
    if attention is None and set(sweep) != {THINKING}:
        return where, "needs an attention to vary; add one next to it, or remove the sweep"
    wrong = THINKING in sweep and _model_problem(system.get("model"), sweep[THINKING], models)
    if wrong:
        return (*where, THINKING), wrong
    for key, values in sweep.items():
        if key == "type":
            return (*where, key), "cannot be swept; write a system for each type"
        if key in (attention or {}):
            return (*where, key), "is also set in the attention; remove it from one of the two"
        labels = [_label(key, value) for value in values]
        for i, label in enumerate(labels):
            if label in labels[:i]:
                return (*where, key, i), "is a duplicate; remove it"
    for expanded, _ in _combinations(name, sweep):
        if len(expanded) > _MAX_LENGTH:
            return where, (
                f"creates a system `{expanded}` of more than {_MAX_LENGTH} characters; "
                f"shorten `{name}`, or sweep fewer keys"
            )
        if expanded in names:
            return where, f"creates a system `{expanded}`, which already exists; rename one of them"
    return None


def _model_problem(model: Any, budgets: list, models: dict) -> str | None:
    """What keeps the thinking budget of a system's model from being varied."""
    if not _is_entry(models, model):
        return None  # validation reports the model
    entry = models[model]
    if not {"path", "api"} & entry.keys():
        return f"models.{model} has no thinking_tokens; sweep those of a model with path or api"
    if THINKING in entry:
        return f"is also set in models.{model}; remove it from one of the two"
    copies = [f"{model}_{_label(THINKING, budget)}" for budget in budgets]
    for copy in copies:
        if len(copy) > _MAX_LENGTH:
            return (
                f"creates a model `{copy}` of more than {_MAX_LENGTH} characters; shorten `{model}`"
            )
        if copy in models:
            return f"creates a model `{copy}`, which already exists; rename one of them"
    return None


def _is_entry(models: dict, model: Any) -> bool:
    return isinstance(model, str) and isinstance(models.get(model), dict)
