"""Models: where each comes from. An entry under `models:` is told by the key it has.

`path` opens a checkpoint, `base` derives one from another model of the file, `pretrain` makes one
from nothing, `api` asks one that runs elsewhere.
"""

import datetime
from typing import Annotated, Any, ClassVar, Literal, Self, Union
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from needlework.config.attention import AnyAttention
from needlework.config.base import Name, Strict, Text
from needlework.config.opening import Opening
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


class Weights(Strict):
    """What every model has whose weights are opened here."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number format of weights and activations"
    )
    allow_extrapolation: bool = Field(
        False, description="true: lengths past the checkpoint's max_position_embeddings are meant"
    )


class Checkpoint(Opening, Weights, Model):
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

    @property
    def opening(self) -> Opening:
        """How it is held in memory."""
        return Opening(**{name: getattr(self, name) for name in Opening.model_fields})


class Derived(Model, Weights):
    """Another model of the file, converted where `attention` says so, then fine-tuned."""

    source: ClassVar[str] = "base"

    base: Name = Field(description="the model to start from")
    attention: AnyAttention | None = Field(None, description="attention that becomes part of it")
    finetune: Finetune = Field(description="the recipe")


class Pretrained(Model, Weights):
    """A small model trained from nothing, with a tokenizer of its own."""

    source: ClassVar[str] = "pretrain"

    pretrain: Pretrain = Field(description="the recipe")


class Price(Strict):
    """What an API charges, in US dollars per million tokens."""

    prompt: float = Field(ge=0, description="US dollars per million prompt tokens")
    completion: float = Field(ge=0, description="US dollars per million new tokens, thoughts too")
    cached: float | None = Field(
        None,
        ge=0,
        description="US dollars per million prompt tokens that the API had cached; null: as prompt",
    )

    def dollars(self, prompt_tokens: int, new_tokens: int, cached_tokens: int = 0) -> float:
        """What so many tokens cost, `cached_tokens` of the prompt's among them."""
        of_cached = self.prompt if self.cached is None else self.cached
        prompt = (prompt_tokens - cached_tokens) * self.prompt + cached_tokens * of_cached
        return (prompt + new_tokens * self.completion) / 1e6


class Api(Model):
    """A model behind an OpenAI-compatible API: a provider's, or a server of yours."""

    source: ClassVar[str] = "api"

    api: str = Field(description="base URL of the API, such as https://api.openai.com/v1")
    model: str = Field(min_length=1, description="the model's name there")
    key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the key; null: the API asks for none",
    )
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="what lengths are counted in: a model of this file, whose samples are then "
        "shared, or a folder or hub name with a tokenizer.json; null: lengths in characters",
    )
    endpoint: Literal["chat", "completions"] = Field(
        "chat", description="completions: the prompt as one text, for base models"
    )
    system_prompt: Text | None = Field(None, description="said first; endpoint chat alone")
    prefill_answer: bool = Field(
        False,
        description="endpoint chat; true: the answer's beginning is put into the model's mouth, "
        "for APIs that go on from it; false: it ends the question",
    )
    temperature: float | None = Field(
        0.0, ge=0, description="of sampling, 0 for none; null: not sent, for models that refuse it"
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="the key of a request that holds the most new tokens"
    )
    thinking_tokens: int = Field(
        0, ge=0, description="new tokens for thoughts, beside max_new_tokens of the task"
    )
    extra_body: dict[str, Any] = Field({}, description="further keys of each request; no secrets")
    concurrency: int = Field(4, ge=1, description="requests at a time")
    requests_per_minute: float | None = Field(
        None, gt=0, description="most requests started in a minute; null: no limit"
    )
    tokens_per_minute: float | None = Field(
        None,
        gt=0,
        description="most tokens (prompt and room for the answer, as the sample counts them) "
        "asked for in a minute; null: no limit",
    )
    timeout_seconds: float = Field(
        600.0, gt=0, description="for a whole answer; a request that takes longer is tried again"
    )
    retries: int = Field(6, ge=0, description="tries after the first, before a sample has failed")
    price: Price | None = Field(None, description="null: costs nothing, or not known")
    test_mode: bool = Field(
        False,
        description="true: a small sample of each cell (the question without its context) is sent "
        "first, and must be answered",
    )

    @field_validator("api")
    @classmethod
    def _is_plain_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if not whole:
            raise ValueError("is no URL; write one such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            # Not shown: it may hold a key.
            raise ValueError("has more than host and path; name the key's variable in key_env")
        return url

    @model_validator(mode="after")
    def _fits_endpoint(self) -> Self:
        for key in ("system_prompt", "prefill_answer"):
            if self.endpoint == "completions" and getattr(self, key):
                raise ValueError(f"{key}: is for endpoint chat; leave it out")
        return self


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
