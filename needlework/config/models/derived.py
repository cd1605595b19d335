"""Models fine-tuned from another model of the experiment."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from needlework.config.attention.base import Attention
from needlework.config.attention.registry import AnyAttention
from needlework.config.base import Name
from needlework.config.errors import Problem
from needlework.config.models.base import TrainedModel
from needlework.config.training import Finetune, FinetuneStage, PretrainStage


class Derived(TrainedModel):
    """Another model of the experiment, converted to `attention` if given, then fine-tuned."""

    source: ClassVar[str] = "base"
    recipe_key: ClassVar[str] = "finetune"

    base: Name = Field(description="the model to start from")
    attention: AnyAttention | None = Field(
        None, description="attention that becomes part of the model"
    )
    finetune: Finetune = Field(description="the recipe")

    @property
    def made_by(self) -> str:
        return "finetune_model"

    @property
    def parent(self) -> str:
        return self.base

    @property
    def tokenizer_of(self) -> str:
        return self.base

    @property
    def conversion(self) -> Attention | None:
        return self.attention

    @property
    def own_attention(self) -> str | None:
        if self.attention is None or not self.attention.converts_model:
            return None
        return self.attention.type

    @property
    def positions(self) -> None:
        return None

    @property
    def config_module(self) -> None:
        return None

    @property
    def recipe(self) -> Finetune:
        return self.finetune

    @property
    def stages(self) -> list[FinetuneStage | PretrainStage]:
        return [*self.finetune.curriculum, self.finetune]

    def problems(self) -> Iterator[Problem]:
        if self.attention is not None and not self.attention.converts_model:
            yield (
                ("attention", "type"),
                "is applied at evaluation; write it under systems, not models",
            )
