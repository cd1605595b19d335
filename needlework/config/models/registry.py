"""Every model source, found by looking into this folder."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from needlework.config import models
from needlework.config.models.base import Model

for _module in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
    if _module.name != __name__:
        importlib.import_module(_module.name)


def _sources(parent: type[Model]) -> Iterator[type[Model]]:
    for cls in parent.__subclasses__():
        if "source" in vars(cls):
            yield cls
        yield from _sources(cls)


# mypy takes a parameter of type[Model] for one that makes instances.
MODEL_SOURCES = tuple(sorted(_sources(Model), key=lambda cls: cls.source))  # type: ignore[type-abstract]
"""Every class of models, in the order of their keys."""


def _tag(cls: type[Model]) -> str:
    # No key of the file ends in a colon, so a tag in an error's location is never mistaken for one.
    return f"{cls.source}:"


def _tag_of(entry: Any) -> str | None:
    if isinstance(entry, Model):
        return _tag(type(entry))
    keys = entry if isinstance(entry, dict) else ()
    present = [_tag(cls) for cls in MODEL_SOURCES if cls.source in keys]
    return present[0] if len(present) == 1 else None


if TYPE_CHECKING:
    AnyModel = Model
else:
    AnyModel = Annotated[
        Union[tuple(Annotated[cls, Tag(_tag(cls))] for cls in MODEL_SOURCES)],  # noqa: UP007
        Discriminator(
            _tag_of,
            custom_error_type="model_source",
            custom_error_message="write exactly one of "
            + ", ".join(f"`{cls.source}`" for cls in MODEL_SOURCES),
        ),
    ]
"""An entry of `models:`, identified by the key that it has."""
