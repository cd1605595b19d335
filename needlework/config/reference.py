"""Reference of the experiment file, generated from the models that validate it."""

import json
import types
import typing
from inspect import cleandoc

from pydantic_core import PydanticUndefined, to_jsonable_python

from needlework.config import training
from needlework.config.attention.base import Attention
from needlework.config.base import Strict, with_type
from needlework.config.experiment import EarlyStopping, EffectiveLength, Experiment, System
from needlework.config.finetune_data import Examples
from needlework.config.gates import SeerGates
from needlework.config.models.base import Model
from needlework.config.models.registry import MODEL_SOURCES
from needlework.config.streams import Stream, StreamedSystem
from needlework.config.tasks.base import Task

_HEADER = """# The experiment file

An experiment is one YAML file; its results go to `results/{experiment}/`. Run it with
`needlework run FILE`, `make run ARGS="--configfile FILE"` or
`snakemake --cores all --configfile FILE`.

Unknown keys, wrong types and impossible combinations fail before any work starts. Each error names
the file, line, key and value, and says what to write instead. `needlework check FILE` runs only
these checks. Editors that support JSON schemas can use `experiment.schema.json`.

This page is generated: `needlework schema --markdown > config/README.md`.
"""


def reference() -> str:
    """Markdown reference: every key with its type, default and meaning."""
    sections: dict[str, tuple[str, list[type[Strict]]]] = {
        "The file": ("Top-level keys.", [Experiment, EarlyStopping, EffectiveLength]),
        "Models": (
            "Entries of `models:`. The key in the title decides which kind of model an entry is.",
            [*MODEL_SOURCES],
        ),
        "Training": (
            "Recipes under `finetune:`, `pretrain:` and `distill:`.",
            _classes_of(training),
        ),
        "Training data": (
            "Entries of `finetune_data:`, selected by `type`.",
            with_type(Examples),
        ),
        "Gates": ("Entries of `gates:`.", [SeerGates]),
        "Systems": (
            "Entries of `systems:`, and the values of `attention:`, selected by `type`.",
            [System, *with_type(Attention)],
        ),
        "Tasks": ("Entries of `tasks:`, selected by `type`.", with_type(Task)),
        "Streams": (
            "Entries of `streams:`, and of the `systems:` of a stream.",
            [Stream, StreamedSystem],
        ),
    }
    listed = {cls for _, classes in sections.values() for cls in classes}
    nested: dict[str, list[type[Strict]]] = {}
    # The last one holds all the others.
    for title, (_, classes) in [*list(sections.items())[1:], *list(sections.items())[:1]]:
        nested[title] = [cls for cls in _nested(classes) if cls not in listed]
        listed.update(nested[title])
    parts = [_HEADER]
    for title, (text, classes) in sections.items():
        parts.append(f"## {title}\n\n{text}\n")
        parts += [_table(cls) for cls in [*classes, *nested[title]]]
    return "\n".join(parts)


def _nested(classes: list[type[Strict]]) -> list[type[Strict]]:
    """The classes of sections within the sections of `classes`."""
    found: dict[type[Strict], None] = {}
    for cls in classes:
        for field in cls.model_fields.values():
            found.update(dict.fromkeys(_sections(field.annotation)))
    return list(found)


def _sections(annotation: typing.Any) -> list[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation, *_nested([annotation])]
    return [cls for part in typing.get_args(annotation) for cls in _sections(part)]


def _classes_of(module: types.ModuleType) -> list[type[Strict]]:
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return [cls for cls in classes if issubclass(cls, Strict) and cls.__module__ == module.__name__]


def _table(cls: type[Strict]) -> str:
    tag = cls.model_fields.get("type")
    source = f"`{cls.source}`: {cls.__name__}" if issubclass(cls, Model) else cls.__name__
    lines = [f"### {f'`type: {tag.default}`' if tag else source}", ""]
    lines += [cleandoc(cls.__doc__ or ""), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        if name == "type":
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required"
        if default is not PydanticUndefined:
            shown = f"`{json.dumps(to_jsonable_python(default))}`"
        meaning = field.description or ""
        lines.append(f"| `{name}` | {_type(field.annotation)} | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def _type(annotation: typing.Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(args[0])
    if origin is typing.Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin is list:
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"names: {_type(args[1])}"
    if args:
        choices = [_type(arg) for arg in args if arg is not type(None)]
        return " or ".join(dict.fromkeys(choices))
    names = {int: "integer", float: "number", str: "text", bool: "true, false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
