"""Models: where each comes from. An entry under `models:` is told by the key it has.

`path` opens a checkpoint, `base` derives one from another model of the file, `pretrain` makes one
from nothing.
"""

import datetime
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from needlework.config.base import Name, Strict
from needlework.config.systems import AnyAttention
from needlework.config.training import Finetune, Pretrain


def _as_day(value: Any) -> str:
    # YAML reads a day without quotes as a date.
    day = value.isoformat() if type(value) is datetime.date else value
    try:
        if datetime.datetime.strptime(day, "%Y-%m-%d").strftime("%Y-%m-%d") == day:
            return day
    except (TypeError, ValueError):
        pass
    raise ValueError("is no day; write YYYY-MM-DD, such as 2025-01-01")


Day = Annotated[
    str,
    BeforeValidator(_as_day),
    WithJsonSchema({"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}),
]
"""A day, YYYY-MM-DD."""


class Model(Strict):
    """What every model has, wherever it comes from."""

    source: ClassVar[str]
    """The key that marks an entry of this class."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of weights and activations"
    )
    beyond_positions: bool = Field(
        False, description="true: lengths past the checkpoint's max_position_embeddings are meant"
    )


class Checkpoint(Model):
    """A Hugging Face checkpoint: a folder, or a hub name where there is a network."""

    source: ClassVar[str] = "path"

    path: str = Field(min_length=1, description="folder of the checkpoint, or owner/name")
    revision: str | None = Field(None, description="commit or tag of a hub name")
    allow_pickle: bool = Field(
        False,
        description="true: weights in pickle files (.bin) are read where there are no safetensors",
    )
    chat_template: bool = Field(
        False, description="true: prompts in the tokenizer's own chat template, answer begun"
    )
    system_prompt: str | None = Field(None, description="said first, in the chat template")
    thinking_tokens: int = Field(
        0, ge=0, description="tokens of thought before an answer; 0: thinking is switched off"
    )
    chat_date: Day = Field(
        "2025-01-01",
        description="the day that templates with a date are told, so that prompts stay the same",
    )


class Derived(Model):
    """Another model of the file, converted where `attention` says so, then fine-tuned."""

    source: ClassVar[str] = "base"

    base: Name = Field(description="the model to start from")
    attention: AnyAttention | None = Field(None, description="attention that becomes part of it")
    finetune: Finetune = Field(description="the recipe")


class Pretrained(Model):
    """A small model trained from nothing, with a tokenizer of its own."""

    source: ClassVar[str] = "pretrain"

    pretrain: Pretrain = Field(description="the recipe")


def _tag(cls: type[Model]) -> str:
    # No key of the file ends in a colon, so a tag in an error's location is never taken for one.
    return f"{cls.source}:"


def _source(entry: Any) -> str | None:
    if isinstance(entry, Model):
        return _tag(type(entry))
    keys = entry if isinstance(entry, dict) else ()
    present = [_tag(cls) for cls in Model.__subclasses__() if cls.source in keys]
    return present[0] if len(present) == 1 else None


AnyModel = Annotated[
    Union[tuple(Annotated[cls, Tag(_tag(cls))] for cls in Model.__subclasses__())],  # noqa: UP007
    Discriminator(
        _source,
        custom_error_type="model_source",
        custom_error_message="name exactly one of "
        + ", ".join(f"`{cls.source}`" for cls in Model.__subclasses__()),
    ),
]
