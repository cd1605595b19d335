"""The reference of experiment files, written from the models that check them."""

import json
import typing
from inspect import cleandoc

from pydantic_core import PydanticUndefined, to_jsonable_python

from needlework.config import training
from needlework.config.attention import Attention
from needlework.config.base import Strict
from needlework.config.experiment import EarlyStopping, EffectiveLength, Experiment, System
from needlework.config.gates import SeerGates
from needlework.config.models import Model, Price
from needlework.config.streams import Stream, StreamedSystem
from needlework.config.tasks import Examples, Task

_HEAD = """# The experiment file

One experiment is one YAML file; everything under `results/{experiment}/` follows from it. Run
another one with `make run ARGS="--configfile FILE"` or `snakemake --cores all --configfile FILE`.
An unknown key, a wrong type or a combination that cannot work stops before any work starts, with
one line that says where and what to write instead; `needlework check FILE` asks for it alone.
Editors that read JSON schemas find one in `experiment.schema.json`.

This page is written from the code: `needlework schema --markdown`.
"""


def reference() -> str:
    """Markdown: every key with its type, default and meaning."""
    sections: dict[str, tuple[str, list[type[Strict]]]] = {
        "The file": ("Keys of the whole file.", [Experiment, EarlyStopping, EffectiveLength]),
        "Models": (
            "An entry of `models:` is told by the key it has.",
            [*Model.__subclasses__(), Price],
        ),
        "Training": (
            "Recipes under `finetune:`, `pretrain:` and `distill:`.",
            _parts(training),
        ),
        "Training data": ("An entry of `finetune_data:`.", _typed(Examples)),
        "Gates": ("An entry of `gates:`.", [SeerGates]),
        "Systems": (
            "An entry of `systems:`, and what `attention:` may be.",
            [System, *_typed(Attention)],
        ),
        "Tasks": ("An entry of `tasks:`, told by its `type`.", _typed(Task)),
        "Streams": (
            "An entry of `streams:`, and of its `systems:`.",
            [Stream, StreamedSystem],
        ),
    }
    parts = [_HEAD]
    for title, (text, classes) in sections.items():
        parts.append(f"## {title}\n\n{text}\n")
        parts += [_table(cls) for cls in classes]
    return "\n".join(parts)


def _parts(module: typing.Any) -> list[type[Strict]]:
    found = [value for value in vars(module).values() if isinstance(value, type)]
    return [cls for cls in found if issubclass(cls, Strict) and cls.__module__ == module.__name__]


def _typed(parent: type[Strict]) -> list[type[Strict]]:
    below = []
    for cls in parent.__subclasses__():
        below += ([cls] if "type" in cls.model_fields else []) + _typed(cls)
    return below


def _table(cls: type[Strict]) -> str:
    kind = cls.model_fields.get("type")
    title = f"`type: {kind.default}`" if kind else cls.__name__
    lines = [f"### {title}", "", cleandoc(cls.__doc__ or ""), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        if name != "type":
            default = field.get_default(call_default_factory=True)
            shown = (
                "required"
                if default is PydanticUndefined
                else f"`{json.dumps(to_jsonable_python(default))}`"
            )
            lines.append(
                f"| `{name}` | {_type(field.annotation)} | {shown} | {field.description or ''} |"
            )
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
        shown = [_type(arg) for arg in args if arg is not type(None)]
        return " or ".join(dict.fromkeys(shown))
    names = {int: "whole number", float: "number", str: "text", bool: "true, false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
