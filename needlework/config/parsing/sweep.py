"""Sweeps: a system of the file that stands for several, one at each combination of values."""

import re
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

from needlework.config.base import Name
from needlework.config.errors import Problem

Where = tuple[str | int, ...]
_PLAIN, _LONGEST = get_args(Name)[1].pattern, get_args(Name)[1].max_length


@dataclass
class Expansion:
    """An experiment's mapping in which each sweep is replaced by its systems."""

    config: Any
    problems: list[Problem] = field(default_factory=list)
    """What is wrong with the sweeps themselves; places as in the file."""
    _made: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)

    def in_file(self, where: Where, is_key: bool = False) -> Where:
        """The place in the file of what stands at `where` in `config`.

        A swept parameter stands at one of its values, or with `is_key` where the sweep names it.
        """
        if where[:1] != ("systems",) or (len(where) > 1 and where[1]) not in self._made:
            return where
        name, chosen = self._made[where[1]]
        if where[2:3] == ("attention",) and len(where) > 3 and where[3] in chosen:
            swept = ("systems", name, "sweep", where[3])
            return swept if is_key else (*swept, chosen[where[3]])
        return ("systems", name, *where[2:])


def expand(config: Any) -> Expansion:
    """Replace every system that has a `sweep` by one system a combination, in its place.

    `walk: {attention: {...}, sweep: {top_k_blocks: [4, 8], heads: [sum]}}` gives
    `walk_top_k_blocks4_heads-sum` and `walk_top_k_blocks8_heads-sum`, of family `walk`. Whatever is
    not of the right type is left for the models to complain of.
    """
    systems = config.get("systems") if isinstance(config, dict) else None
    if not isinstance(systems, dict):
        return Expansion(config)
    plain: dict[Any, Any] = {}
    expansion = Expansion({**config, "systems": plain})
    for name, system in systems.items():
        if not _is_sweep(name, system):
            plain[name] = system
            continue
        problem = _problem(name, system, {*systems, *plain})
        rest = {key: part for key, part in system.items() if key != "sweep"}
        if problem is not None:
            expansion.problems.append(problem)
            plain[name] = rest
            continue
        for made, chosen in _combinations(name, system["sweep"]):
            values = {key: system["sweep"][key][i] for key, i in chosen.items()}
            attention = {**rest["attention"], **values}
            plain[made] = {"family": name, **rest, "attention": attention}
            expansion._made[made] = name, chosen
    return expansion


def _is_sweep(name: Any, system: Any) -> bool:
    """Whether there is a sweep, and all that its systems are made of has the right type."""
    if not (isinstance(name, str) and re.match(_PLAIN, name) and isinstance(system, dict)):
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
    """Name of each system made, and which value each key has in it; the last key runs fastest."""
    made = []
    for at in product(*(range(len(values)) for values in sweep.values())):
        chosen = dict(zip(sweep, at, strict=True))
        labels = (_label(key, sweep[key][i]) for key, i in chosen.items())
        made.append(("_".join([name, *labels]), chosen))
    return made


def _label(key: str, value: Any) -> str:
    """`top_k_blocks4`, `heads-sum`, `skip_decode-true`: a part of a system's name."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{key}{value}".replace("+", "")
    word = {True: "true", False: "false", None: "null"}.get(value, value)
    return f"{key}-" + re.sub(r"[^A-Za-z0-9_.-]", "-", str(word))


def _problem(name: str, system: dict, taken: set) -> Problem | None:
    where, sweep = ("systems", name, "sweep"), system["sweep"]
    attention = system.get("attention")
    if attention is None:
        return where, "has no attention to vary; write one beside it, or leave the sweep out"
    for key, values in sweep.items():
        if key == "type":
            return (*where, key), "is no parameter; write a system for each type"
        if key in attention:
            return (*where, key), "stands in the attention too; write it in one of the two"
        labels = [_label(key, value) for value in values]
        for i, label in enumerate(labels):
            if label in labels[:i]:
                return (*where, key, i), "stands twice; write it once"
    for made, _ in _combinations(name, sweep):
        if len(made) > _LONGEST:
            return where, (
                f"names a system `{made}`, of more than {_LONGEST} characters; "
                f"shorten `{name}`, or sweep fewer keys at once"
            )
        if made in taken:
            return where, f"names a system `{made}`, which is there already; rename one of them"
    return None
