"""From a mapping to a checked Experiment, or one line that says what to mend and where."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from needlework.config.errors import one_of
from needlework.config.experiment import Experiment
from needlework.config.parsing.sweep import expand
from needlework.config.parsing.yaml_source import SourceMap
from needlework.config.validation.experiment import problems

_WANTED = {
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "float_type": "write a number, such as 0.25 or 1.0e-3 (YAML reads 1e-3 as text)",
    "string_type": "write text, in quotes if it looks like a number",
    "bool_type": "write true or false",
    "list_type": "write a list, such as [1, 2]",
    "dict_type": "write a mapping of names",
    "model_type": "write a mapping of keys",
    "model_attributes_type": "write a mapping of keys",
    "missing": "is missing; add it",
    "string_pattern_mismatch": "is no plain word; a letter first, then letters, digits, `_.-`",
    "too_short": "is empty; name at least one",
}
_BOUNDS = {
    "less_than": ("below", "lt"),
    "less_than_equal": ("of at most", "le"),
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("of at least", "ge"),
}


def load_experiment(config: dict[str, Any], files: Iterable[str | Path] = ()) -> Experiment:
    """The experiment that `config` describes, its sweeps expanded to plain systems.

    `files` are those that `config` was read from, for line numbers.

    Raises:
        ValueError: the first thing that is wrong: file, line, key, value and remedy in one line.
    """
    sources = [SourceMap(file) for file in files]
    expansion = expand(config)
    found = expansion.problems
    try:
        experiment = Experiment.model_validate(expansion.config)
    except ValidationError as error:
        for item in error.errors():
            where, what = _explain(expansion.config, item)
            found.append((expansion.in_file(where, item["type"] == "extra_forbidden"), what))
    else:
        found += [(expansion.in_file(where), what) for where, what in problems(experiment)]
        if not found:
            return experiment
    # What is wrong with a sweep is so in each of its systems.
    lines = list(dict.fromkeys(_line(sources, config, *one) for one in found))
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    raise ValueError(lines[0] + more)


def read_experiment(path: str | Path) -> Experiment:
    """The experiment in one YAML file.

    Raises:
        ValueError: as load_experiment, or the file cannot be read.
    """
    content = SourceMap(path).content
    return load_experiment({} if content is None else content, [path])


def _explain(config: dict, error: dict) -> tuple[tuple[str | int, ...], str]:
    loc, kind = error["loc"], error["type"]
    if isinstance(error["input"], dict) and loc and error["input"].get("type") == loc[-1]:
        loc = loc[:-1]  # what is wrong with a whole part: its tag is no key of the file
    where = _in_file(config, loc)
    if kind == "extra_forbidden":
        return where, "unknown key; " + one_of(_properties(loc), str(where[-1]))
    if kind in ("union_tag_invalid", "literal_error"):
        key = "expected_tags" if kind == "union_tag_invalid" else "expected"
        tags = error["ctx"][key].replace("'", "").replace(" or ", ", ").split(", ")
        where = (*where, "type") if kind == "union_tag_invalid" else where
        return where, one_of(tags, str(_value(config, where)))
    if kind == "union_tag_not_found":
        return (*where, "type"), "is missing; add it"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return where, f"write a number {words} {error['ctx'][key]}"
    if kind == "missing":
        meaning = _properties(loc).get(loc[-1], {}).get("description")
        return where, _WANTED[kind] + (f": {meaning}" if meaning else "")
    wanted = str(error["ctx"]["error"]) if kind == "value_error" else _WANTED.get(kind)
    if wanted is None:
        wanted = error["msg"][:1].lower() + error["msg"][1:]
    return where, wanted


def _in_file(config: Any, loc: tuple) -> tuple[str | int, ...]:
    """`loc` without the tags and `[key]` marks that pydantic puts between the file's keys."""
    where: list[str | int] = []
    for i, part in enumerate(loc):
        if part == "[key]" or str(part).endswith(":"):
            continue
        last = i == len(loc) - 1
        if isinstance(config, dict) and (part in config or last):
            where.append(part)
            config = config.get(part)
        elif isinstance(config, list) and isinstance(part, int):
            where.append(part)
            config = config[part] if part < len(config) else None
    return tuple(where)


def _properties(loc: tuple) -> dict[str, dict]:
    """Keys of the model that `loc`'s last part stands in, read from the JSON schema."""
    schema = Experiment.model_json_schema()
    node = schema
    for part in loc[:-1]:
        node = _step(schema, node, part)
    for choice in _resolve(schema, node).get("anyOf", []):
        node = choice if "$ref" in choice else node
    return _resolve(schema, node).get("properties", {})


def _step(schema: dict, node: dict, part: str | int) -> dict:
    node = _resolve(schema, node)
    for choice in node.get("anyOf", []):
        if "$ref" in choice or "oneOf" in choice:
            node = _resolve(schema, choice)
    for choice in node.get("oneOf", []):
        found = _resolve(schema, choice)
        tags = (found["properties"].get("type", {}).get("const"), *found.get("required", []))
        if str(part).removesuffix(":") in tags:
            return found
    if part in node.get("properties", {}):
        return node["properties"][part]
    if isinstance(part, int):
        return node.get("items", {})
    extra = node.get("additionalProperties", {})
    patterns = list(node.get("patternProperties", {}).values())
    return extra or (patterns[0] if patterns else {})


def _resolve(schema: dict, node: Any) -> dict:
    while isinstance(node, dict) and "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node if isinstance(node, dict) else {}


def _value(config: Any, where: tuple[str | int, ...]) -> Any:
    for part in where:
        try:
            config = config[part]
        except (KeyError, IndexError, TypeError):
            return None
    return config


def _line(sources: list[SourceMap], config: dict, where: tuple[str | int, ...], what: str) -> str:
    source = next((s for s in sources if where in s), sources[0] if sources else None)
    place = f"{source.path}:{source.line(where)}: " if source else ""
    value = _value(config, where)
    shown = "" if value is None or isinstance(value, dict | list) else f" = {value!r}"
    return f"{place}{'.'.join(map(str, where)) or 'the file'}{shown}: {what}"
