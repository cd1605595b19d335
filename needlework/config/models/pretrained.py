"""Small models that the experiment pretrains."""

from typing import ClassVar

from pydantic import Field

from needlework.config.models.base import TrainedModel
from needlework.config.training import FinetuneStage, Pretrain, PretrainStage


class Pretrained(TrainedModel):
    """A small model and its tokenizer, trained from scratch."""

    source: ClassVar[str] = "pretrain"
    recipe_key: ClassVar[str] = "pretrain"

    pretrain: Pretrain = Field(description="the recipe")

    @property
    def made_by(self) -> str:
        return "pretrain_model"

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
    def own_attention(self) -> None:
        return None

    @property
    def positions(self) -> int:
        return self.pretrain.max_positions

    @property
    def config_module(self) -> str:
        return "needlework.training.pretrain"

    @property
    def recipe(self) -> Pretrain:
        return self.pretrain

    @property
    def stages(self) -> list[FinetuneStage | PretrainStage]:
        return [*self.pretrain.stages]
