"""What the rest of the workflow asks of a model, whatever its source.

A model source is one module in this folder: a class with the `source` key that marks its entries
under `models:` and an answer to every abstract property below. `config.models.registry` finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import Field

from needlework.config.attention.base import Attention
from needlework.config.base import Strict
from needlework.config.errors import Problem
from needlework.config.models.thought import ThoughtFormat
from needlework.config.opening import DType, ModelSpec, Opening
from needlework.config.training import FinetuneStage, ModelTraining, PretrainStage

if TYPE_CHECKING:
    from needlework.config.models.api import Api


class TokenizerSource(NamedTuple):
    """A tokenizer outside this workflow's results."""

    key: str
    """The key of the model's entry that names it."""
    path: str
    """Folder, or owner/name on the hub."""
    revision: str | None = None


class Chat(Strict):
    """How prompts are put into a model's chat template."""

    template: str | None
    """Name of the template; None: the default."""
    system_prompt: str | None
    thinking_tokens: int
    thought_format: ThoughtFormat | None
    date: str


class Model(Strict, ABC):
    """An entry of `models:`."""

    source: ClassVar[str]
    """The key that marks an entry of this class."""

    @property
    @abstractmethod
    def local(self) -> "LocalModel | None":
        """The model if its weights are opened here; None if it runs behind an API."""

    @property
    @abstractmethod
    def remote(self) -> "Api | None":
        """The model if it runs behind an API; None if its weights are opened here."""

    @property
    @abstractmethod
    def trained(self) -> "TrainedModel | None":
        """The model if this workflow trains it."""

    @property
    @abstractmethod
    def made_by(self) -> str | None:
        """Name of the rule that makes its files; None if they exist before a run."""

    @property
    @abstractmethod
    def parent(self) -> str | None:
        """Name of the model under `models:` that its weights start from."""

    @property
    @abstractmethod
    def tokenizer_of(self) -> str | None:
        """Name of the model under `models:` whose tokenizer it uses; None for its own."""

    @property
    @abstractmethod
    def tokenizer_source(self) -> TokenizerSource | None:
        """Its own tokenizer, if that exists before a run."""

    @property
    @abstractmethod
    def files(self) -> list[str]:
        """Existing files on this machine that opening it reads, sorted."""

    @property
    @abstractmethod
    def own_attention(self) -> str | None:
        """Type of the needlework attention in its weights, apart from its parent's."""

    @property
    @abstractmethod
    def positions(self) -> int | None:
        """Positions it is made for; None if unknown or its parent's."""

    @property
    def chat(self) -> Chat | None:
        """Its chat template's settings; None for plain prompts."""
        return None

    @property
    def takes_messages(self) -> bool:
        """Whether a prompt can be a conversation of several messages."""
        return self.chat is not None

    @property
    def thoughts(self) -> ThoughtFormat | None:
        """The format of its reasoning, if the entry names one."""
        return getattr(self, "thought_format", None)

    @property
    def chat_undecided(self) -> bool:
        """Whether the entry leaves open if prompts use a chat template."""
        return False

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the entry and its files, apart from the rest of the experiment.

        Keys are those of the entry.
        """
        yield from ()


class LocalModel(Model):
    """A model whose weights are opened here."""

    dtype: DType = Field("float32", description="number format of weights and activations")
    allow_extrapolation: bool = Field(
        False,
        description="true: allow lengths past the checkpoint's positions, rope scaling included",
    )

    @property
    def local(self) -> "LocalModel":
        return self

    @property
    def remote(self) -> None:
        return None

    @property
    @abstractmethod
    def weights_path(self) -> str | None:
        """Folder or hub name of weights that exist before a run; None if a rule makes them."""

    @property
    @abstractmethod
    def conversion(self) -> Attention | None:
        """Attention that it gets in place of its parent's."""

    @property
    @abstractmethod
    def config_module(self) -> str | None:
        """Module with `config_of(model)`, its transformers config before a run; None: its parent's.

        Planning reads it, as no weights are loaded there.
        """

    @abstractmethod
    def spec(self, made_in: str = "") -> ModelSpec:
        """How to open it, where `made_in` is the folder that a rule makes it in."""

    @property
    def config_json(self) -> dict[str, Any]:
        """Its config.json if that exists before a run on this machine; empty otherwise."""
        return {}

    @property
    def opening(self) -> Opening:
        """How its weights are held in memory."""
        return Opening()


class TrainedModel(LocalModel):
    """A model that this workflow trains."""

    recipe_key: ClassVar[str]
    """The key of the entry that holds the recipe."""

    @property
    @abstractmethod
    def recipe(self) -> ModelTraining:
        """How it is trained."""

    @property
    @abstractmethod
    def stages(self) -> list[FinetuneStage | PretrainStage]:
        """Every stage of its training, in order."""

    @property
    def trained(self) -> "TrainedModel":
        return self

    @property
    def weights_path(self) -> None:
        return None

    @property
    def tokenizer_source(self) -> None:
        return None

    @property
    def files(self) -> list[str]:
        return []

    def spec(self, made_in: str = "") -> ModelSpec:
        return ModelSpec(path=made_in, dtype=self.dtype)
