"""Parse and validate an experiment; report each problem as one line with location and remedy."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from needlework.config.errors import Location, suggest
from needlework.config.experiment import Experiment
from needlework.config.parsing.sweep import expand
from needlework.config.parsing.yaml_source import SourceMap
from needlework.config.validation.experiment import experiment_problems

_REMEDIES = {
    "int_type": "write an integer",
    "int_from_float": "write an integer",
    "float_type": "write a number, such as 0.25 or 1.0e-3 (YAML reads 1e-3 as text)",
    "string_type": "write text, in quotes if it looks like a number",
    "bool_type": "write true or false",
    "list_type": "write a list, such as [1, 2]",
    "dict_type": "write a mapping of names",
    "model_type": "write a mapping of keys",
    "model_attributes_type": "write a mapping of keys",
    "missing": "is required; add it",
    "string_pattern_mismatch": "is not a valid name; start with a letter, then use letters, "
    "digits, `_`, `.` or `-`",
    "too_short": "is empty; write at least one entry",
}
_BOUNDS = {
    "less_than": ("below", "lt"),
    "less_than_equal": ("of at most", "le"),
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("of at least", "ge"),
}


def load_experiment(config: dict[str, Any], files: Iterable[str | Path] = ()) -> Experiment:
    """Validate `config` and expand its sweeps to plain systems.

    `files` are the YAML files that `config` was read from; errors refer to their lines.

    Raises:
        ValueError: the experiment is invalid. The message has a line for each problem with file,
            line, key, value and remedy.
    """
    sources = [SourceMap(file) for file in files]
    expansion = expand(config)
    problems = expansion.problems
    try:
        experiment = Experiment.model_validate(expansion.config)
    except ValidationError as error:
        for details in error.errors():
            where, what = _explain(expansion.config, details)
            is_key = details["type"] == "extra_forbidden"
            problems.append((expansion.location_in_file(where, is_key), what))
    else:
        for where, what in experiment_problems(experiment):
            problems.append((expansion.location_in_file(where), what))
        if not problems:
            return experiment
    # A problem with a sweep occurs in each of its systems, so drop duplicates.
    lines = dict.fromkeys(_format(sources, config, *problem) for problem in problems)
    raise ValueError("\n".join(lines))


def read_experiment(path: str | Path) -> Experiment:
    """Read and validate the experiment in a YAML file.

    Raises:
        ValueError: the file cannot be read, or the experiment is invalid (see `load_experiment`).
    """
    content = SourceMap(path).content
    return load_experiment({} if content is None else content, [path])


def _explain(config: Any, error: ErrorDetails) -> tuple[Location, str]:
    """Location and remedy of a pydantic error."""
    loc, kind = error["loc"], error["type"]
    context = error.get("ctx", {})
    if isinstance(error["input"], dict) and loc and error["input"].get("type") == loc[-1]:
        loc = loc[:-1]  # an error of a whole section: its last part is a tag, not a key of the file
    where = _without_tags(config, loc)
    if kind == "extra_forbidden":
        return where, "unknown key; " + suggest(_properties(loc), str(where[-1]))
    if kind in ("union_tag_invalid", "literal_error"):
        key = "expected_tags" if kind == "union_tag_invalid" else "expected"
        tags = context[key].replace("'", "").replace(" or ", ", ").split(", ")
        where = (*where, "type") if kind == "union_tag_invalid" else where
        return where, suggest(tags, str(_value(config, where)))
    if kind == "union_tag_not_found":
        return (*where, "type"), _REMEDIES["missing"]
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = str(context[key]).removesuffix(".0")
        return where, f"write a number {words} {bound}"
    if kind == "missing":
        meaning = _properties(loc).get(str(loc[-1]), {}).get("description")
        return where, _REMEDIES[kind] + (f": {meaning}" if meaning else "")
    remedy = str(context["error"]) if kind == "value_error" else _REMEDIES.get(kind)
    if remedy is None:
        remedy = error["msg"][:1].lower() + error["msg"][1:]
    return where, remedy


def _without_tags(config: Any, loc: Location) -> Location:
    """`loc` without the union tags and `[key]` markers that pydantic inserts."""
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


def _properties(loc: Location) -> dict[str, dict]:
    """JSON schemas of the keys that are allowed next to the last part of `loc`."""
    schema = Experiment.model_json_schema()
    node = schema
    for part in loc[:-1]:
        node = _descend(schema, node, part)
    for choice in _resolve(schema, node).get("anyOf", []):
        node = choice if "$ref" in choice else node
    return _resolve(schema, node).get("properties", {})


def _descend(schema: dict, node: dict, part: str | int) -> dict:
    """Schema of the value at key, index or union tag `part` of `node`."""
    node = _resolve(schema, node)
    for choice in node.get("anyOf", []):
        if "$ref" in choice or "oneOf" in choice:
            node = _resolve(schema, choice)
    for choice in node.get("oneOf", []):
        member = _resolve(schema, choice)
        tags = (member["properties"].get("type", {}).get("const"), *member.get("required", []))
        if str(part).removesuffix(":") in tags:
            return member
    if part in node.get("properties", {}):
        return node["properties"][part]
    if isinstance(part, int):
        return node.get("items", {})
    extra = node.get("additionalProperties", {})
    patterns = list(node.get("patternProperties", {}).values())
    return extra or (patterns[0] if patterns else {})


def _resolve(schema: dict, node: Any) -> dict:
    """`node` with references into `$defs` followed; empty if it is not a schema."""
    while isinstance(node, dict) and "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node if isinstance(node, dict) else {}


def _value(config: Any, where: Location) -> Any:
    for part in where:
        try:
            config = config[part]
        except (KeyError, IndexError, TypeError):
            return None
    return config


def _format(sources: list[SourceMap], config: Any, where: Location, what: str) -> str:
    """`FILE:LINE: KEY = VALUE: WHAT`."""
    source = next((s for s in sources if where in s), sources[0] if sources else None)
    place = f"{source.path}:{source.line(where)}: " if source else ""
    value = _value(config, where)
    shown = "" if value is None or isinstance(value, dict | list) else f" = {value!r}"
    return f"{place}{'.'.join(map(str, where)) or 'the file'}{shown}: {what}"
