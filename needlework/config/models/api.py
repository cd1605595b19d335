"""Models behind an OpenAI-compatible API, and what they charge."""

from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from needlework.config.base import Strict, Text
from needlework.config.models.base import Model, TokenizerSource
from needlework.config.models.thought import ThoughtFormat
from needlework.config.models.tokenizer_files import TOKENIZER_FILES, files_in


class Price(Strict):
    """Prices of an API, in US dollars per million tokens."""

    prompt: float = Field(ge=0, description="US dollars per million prompt tokens")
    completion: float = Field(
        ge=0, description="US dollars per million new tokens, reasoning included"
    )
    cached: float | None = Field(
        None,
        ge=0,
        description="US dollars per million cached prompt tokens; null: the same as prompt",
    )

    def dollars(self, prompt_tokens: int, new_tokens: int, cached_tokens: int = 0) -> float:
        """Cost of a request in US dollars; `prompt_tokens` include `cached_tokens`."""
        cached = self.prompt if self.cached is None else self.cached
        prompt = (prompt_tokens - cached_tokens) * self.prompt + cached_tokens * cached
        return (prompt + new_tokens * self.completion) / 1e6


class Api(Model):
    """A model behind an OpenAI-compatible API: a provider's, or your own server's."""

    source: ClassVar[str] = "api"

    api: str = Field(description="base URL of the API, such as https://api.openai.com/v1")
    model: str = Field(min_length=1, description="the model's name at the API")
    key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the key; null: the API needs none",
    )
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="tokenizer that lengths are counted in: a model of this file, to share its "
        "samples, or a folder or hub name with a tokenizer.json; null: lengths are in characters",
    )
    endpoint: Literal["chat", "completions"] = Field(
        "chat", description="completions: the prompt as one text, for base models"
    )
    system_prompt: Text | None = Field(None, description="system message; only for endpoint chat")
    prefill_answer: bool = Field(
        False,
        description="only for endpoint chat; true: send the start of the answer as the "
        "assistant's message, for APIs that continue it; false: append it to the question",
    )
    temperature: float | None = Field(
        0.0, ge=0, description="sampling temperature; null: not sent, for models that refuse it"
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="key of a request that limits new tokens"
    )
    thinking_tokens: int = Field(
        0, ge=0, description="new tokens for reasoning, in addition to the task's max_new_tokens"
    )
    thought_format: ThoughtFormat | None = Field(
        None, description="tags around the reasoning; null: any of the known formats"
    )
    extra_body: dict[str, Any] = Field({}, description="more keys of each request; no secrets")
    concurrency: int = Field(4, ge=1, description="requests in flight")
    requests_per_minute: float | None = Field(
        None, gt=0, description="most requests started per minute; null: no limit"
    )
    tokens_per_minute: float | None = Field(
        None,
        gt=0,
        description="most tokens (prompt and room for the answer, as the sample counts them) "
        "requested per minute; null: no limit",
    )
    timeout_seconds: float = Field(
        600.0, gt=0, description="for a whole answer; a request that takes longer is retried"
    )
    retries: int = Field(6, ge=0, description="attempts after the first before a sample fails")
    price: Price | None = Field(None, description="null: free or unknown")
    test_mode: bool = Field(
        False,
        description="true: first send a small sample of each cell (the question without its "
        "context), which must be answered",
    )

    @field_validator("api")
    @classmethod
    def _check_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("is not a URL; write one such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            # The URL is not shown, as it may hold a key.
            raise ValueError("has more than host and path; name the key's variable in key_env")
        return url

    @model_validator(mode="after")
    def _check_endpoint(self) -> Self:
        for key in ("system_prompt", "prefill_answer"):
            if self.endpoint == "completions" and getattr(self, key):
                raise ValueError(f"{key}: is only for endpoint chat; remove it")
        return self

    @property
    def takes_messages(self) -> bool:
        return self.endpoint == "chat"

    @property
    def local(self) -> None:
        return None

    @property
    def remote(self) -> Self:
        return self

    @property
    def trained(self) -> None:
        return None

    @property
    def made_by(self) -> None:
        return None

    @property
    def parent(self) -> None:
        return None

    @property
    def tokenizer_of(self) -> str | None:
        return self.tokenizer

    @property
    def tokenizer_source(self) -> TokenizerSource | None:
        return None if self.tokenizer is None else TokenizerSource("tokenizer", self.tokenizer)

    @property
    def files(self) -> list[str]:
        return [] if self.tokenizer is None else files_in(self.tokenizer, TOKENIZER_FILES)

    @property
    def own_attention(self) -> None:
        return None

    @property
    def positions(self) -> None:
        return None
