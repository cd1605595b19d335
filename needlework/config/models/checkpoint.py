"""Models that are checkpoints: a folder, or a name on the Hugging Face hub."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from needlework.config.errors import Problem, suggest
from needlework.config.models.base import Chat, LocalModel, TokenizerSource
from needlework.config.models.thought import ThoughtFormat
from needlework.config.models.tokenizer_files import (
    TEMPLATES,
    TOKENIZER_FILES,
    chat_templates,
    files_in,
    has_vocabulary,
)
from needlework.config.opening import ModelSpec, Opening
from needlework.config.paths import is_hub_name, json_object
from needlework.config.rope import RopeScaling, positions_of


def _as_day(value: Any) -> str:
    # YAML reads an unquoted day as a date.
    day = value.isoformat() if type(value) is datetime.date else value
    try:
        if datetime.datetime.strptime(day, "%Y-%m-%d").strftime("%Y-%m-%d") == day:
            return day
    except (TypeError, ValueError):
        pass
    raise ValueError("is not a day; write YYYY-MM-DD, such as 2025-01-01")


Day = Annotated[
    str,
    BeforeValidator(_as_day),
    WithJsonSchema({"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}),
]
"""A day, YYYY-MM-DD."""


class Checkpoint(Opening, LocalModel):
    """A Hugging Face checkpoint: a folder, or owner/name on the hub if there is a network."""

    source: ClassVar[str] = "path"

    path: str = Field(min_length=1, description="checkpoint folder, or owner/name")
    revision: str | None = Field(None, description="commit or tag of a hub name")
    allow_pickle: bool = Field(
        False,
        description="true: read weights from pickle files (.bin), and gates from .pth, if there "
        "are no safetensors",
    )
    rope_scaling: RopeScaling | None = Field(
        None,
        description="rotary position scaling for longer texts, such as {rope_type: yarn, factor: "
        "4.0}; null: as config.json states it",
    )
    chat_template: bool | str = Field(
        False,
        description="true: prompts in the tokenizer's chat template, which also starts the answer; "
        "a name: in its template of that name, such as tool_use",
    )
    system_prompt: str | None = Field(None, description="system message of the chat template")
    thinking_tokens: int = Field(
        0, ge=0, description="most reasoning tokens before an answer; 0: reasoning is turned off"
    )
    thought_format: ThoughtFormat | None = Field(
        None, description="tags around the reasoning; null: any of the known formats"
    )
    chat_date: Day = Field(
        "2025-01-01",
        description="today's date for templates that print it, so that prompts stay the same",
    )

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
    def tokenizer_of(self) -> None:
        return None

    @property
    def conversion(self) -> None:
        return None

    @property
    def weights_path(self) -> str:
        return self.path

    @property
    def tokenizer_source(self) -> TokenizerSource:
        return TokenizerSource("path", self.path, self.revision)

    @property
    def files(self) -> list[str]:
        kinds = ["json", "jinja", "safetensors", *(["bin"] if self.allow_pickle else [])]
        patterns = [*(f"*.{kind}" for kind in kinds), *TOKENIZER_FILES, *TEMPLATES]
        return files_in(self.path, patterns)

    @property
    def config_json(self) -> dict[str, Any]:
        file = Path(self.path) / "config.json"
        return (json_object(file) if file.is_file() else None) or {}

    @property
    def own_attention(self) -> str | None:
        return self.config_json.get("needlework_attention")

    @property
    def positions(self) -> int | None:
        return positions_of(self.config_json, self.rope_scaling)

    @property
    def config_module(self) -> str:
        return "needlework.models.checkpoint"

    @property
    def opening(self) -> Opening:
        return Opening(**{name: getattr(self, name) for name in Opening.model_fields})

    def spec(self, made_in: str = "") -> ModelSpec:
        return ModelSpec(
            path=self.path,
            revision=self.revision,
            dtype=self.dtype,
            allow_pickle=self.allow_pickle,
            rope_scaling=self.rope_scaling,
            opening=self.opening,
        )

    @property
    def chat(self) -> Chat | None:
        if not self.chat_template:
            return None
        return Chat(
            template=self.chat_template if isinstance(self.chat_template, str) else None,
            system_prompt=self.system_prompt,
            thinking_tokens=self.thinking_tokens,
            thought_format=self.thought_format,
            date=self.chat_date,
        )

    @property
    def chat_undecided(self) -> bool:
        # An explicit `chat_template: false` is a decision.
        return "chat_template" not in self.model_fields_set

    def problems(self) -> Iterator[Problem]:
        yield from self._file_problems()
        yield from self._chat_problems()

    def _file_problems(self) -> Iterator[Problem]:
        folder = Path(self.path)
        if not folder.exists():
            if not is_hub_name(self.path):
                yield ("path",), "no such folder; name an existing one, or owner/name on the hub"
            return
        config = folder / "config.json"
        is_there = {"config.json": config.is_file(), "tokenizer.json": has_vocabulary(folder)}
        for file in (file for file, exists in is_there.items() if not exists):
            yield ("path",), f"has no {file}; name a Hugging Face checkpoint folder"
        if config.is_file() and json_object(config) is None:
            yield ("path",), "config.json is not a JSON object; download it again"
        kinds = {path.suffix for path in folder.glob("*")}
        if ".bin" in kinds and ".safetensors" not in kinds and not self.allow_pickle:
            yield (
                ("path",),
                "has only pickled weights; save them as safetensors, or write "
                "allow_pickle: true if you trust them",
            )

    def _chat_problems(self) -> Iterator[Problem]:
        if not self.chat_template:
            for key in ("system_prompt", "thinking_tokens"):
                if getattr(self, key):
                    yield (key,), "needs a chat template; write chat_template: true, or remove it"
            return
        if not Path(self.path).is_dir():
            return
        try:
            names = list(chat_templates(self.path))
        except ValueError as error:
            yield ("path",), str(error)
            return
        if not names:
            yield (
                ("chat_template",),
                f"has no template: {self.path} has neither chat_template.jinja nor one in "
                "tokenizer_config.json; write false, or name an instruct model",
            )
        elif isinstance(self.chat_template, str) and self.chat_template not in names:
            yield ("chat_template",), f"no such template; {suggest(names, self.chat_template)}"
        elif self.chat_template is True and "default" not in names:
            yield ("chat_template",), f"no default template; write one of {', '.join(names)}"
