"""The experiment file: models, systems to compare, tasks and data."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from needlework.config.attention.registry import AnyAttention
from needlework.config.base import Name, Strict
from needlework.config.depths import Depths
from needlework.config.finetune_data import AnyExamples
from needlework.config.gates import SeerGates
from needlework.config.models.base import LocalModel, Model
from needlework.config.models.registry import AnyModel
from needlework.config.streams import Stream
from needlework.config.tasks.haystack import Haystack
from needlework.config.tasks.registry import AnyTask


def _one_value(value: Any) -> Any:
    if isinstance(value, list | dict):
        raise ValueError("write single values, such as [4, 8]")
    return value


# The parameter's own type is checked on each system that the sweep expands to.
_Value = Annotated[
    int | float | bool | str | None,
    PlainValidator(_one_value, json_schema_input_type=int | float | bool | str | None),
]


class EarlyStopping(Strict):
    """Evaluate lengths in ascending order and skip those that a system cannot handle."""

    min_accuracy: float = Field(
        0.1,
        ge=0,
        le=1,
        description="skip longer lengths of a task once accuracy is below this at two consecutive "
        "lengths; 0: never stop for low accuracy",
    )


class EffectiveLength(Strict):
    """Thresholds for the effective length: the longest length at which a system's score, its mean
    accuracy over all tasks, is still high enough."""

    score: float = Field(
        0.856,
        gt=0,
        le=1,
        description="absolute threshold, the same for all systems; RULER uses 0.856",
    )
    share: float = Field(
        0.85,
        gt=0,
        le=1,
        description="relative threshold: share of the system's score at the shortest length; "
        "NoLiMa uses 0.85",
    )


def _parse_early_stopping(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class System(Strict):
    """A model with the attention it is evaluated under."""

    model: Name = Field(description="a name under models")
    attention: AnyAttention | None = Field(None, description="null: the model's own attention")
    sweep: (
        Annotated[dict[str, Annotated[list[_Value], Field(min_length=1)]], Field(min_length=1)]
        | None
    ) = Field(
        None,
        description="lists of values for attention parameters, or for thinking_tokens of the "
        "model; each combination becomes a system named {name}_{key}{value}: `walk` with "
        "{top_k_blocks: [4, 8]} gives walk_top_k_blocks4 and walk_top_k_blocks8",
    )
    family: Name | None = Field(
        None,
        description="group that figures show as one series; default for a sweep: the sweep's name",
    )
    early_stopping: bool | None = Field(
        None,
        description="false: evaluate all lengths even if the experiment sets early_stopping; null: "
        "follow the experiment",
    )


class Experiment(Strict):
    """One experiment; its results go to results/{experiment}/."""

    experiment: Name = Field(description="name of the folder under results/")
    seed: int = Field(42, ge=0, description="root of all random streams")
    models: dict[Name, AnyModel] = Field(min_length=1, description="models to open or train")
    finetune_data: dict[Name, AnyExamples] = Field({}, description="rows to train on")
    gates: dict[Name, SeerGates] = Field(
        {}, description="gates to distill for systems of type seer"
    )
    systems: dict[Name, System] = Field(min_length=1, description="systems to compare")
    baseline: Name | None = Field(None, description="system that the others are compared with")
    tasks: dict[Name, AnyTask] = Field(min_length=1, description="tasks to evaluate")
    haystacks: dict[Name, Haystack] = Field({}, description="your own texts to hide needles in")
    lengths: list[int] = Field(
        min_length=1,
        description="context lengths: tokens of prompt and answer together, or characters of the "
        "prompt",
    )
    length_unit: Literal["tokens", "characters"] = Field("tokens", description="unit of lengths")
    depths: Depths = Field(
        [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
        validate_default=True,
        description="needle positions in percent of the haystack: a list, {linear: 11}, "
        "{sigmoid: 11} or uniform; samples are spread evenly over them",
    )
    samples: int = Field(22, ge=1, description="samples of each task at each length")
    early_stopping: Annotated[
        EarlyStopping | None,
        BeforeValidator(_parse_early_stopping, json_schema_input_type=bool | EarlyStopping | None),
    ] = Field(
        None,
        description="true or a mapping: evaluate lengths in ascending order; skip the rest, with "
        "the reason recorded, when memory runs out, the model refuses a length, or accuracy stays "
        "below min_accuracy",
    )
    effective_length: EffectiveLength = Field(
        EffectiveLength(), description="thresholds for the effective length"
    )
    device: str = Field(
        "cpu",
        description="device of resources/devices.yaml that `needlework plan` and the resource "
        "requests of jobs assume",
    )
    streams: dict[Name, Stream] = Field({}, description="long texts for perplexity")
    package: Name | None = Field(None, description="pretrained model to package with a model card")

    def stream_systems(self) -> list[str]:
        """Names of the systems that only streams define."""
        names = (name for stream in self.streams.values() for name in stream.systems)
        return [name for name in dict.fromkeys(names) if name not in self.systems]

    def model_of(self, system: str) -> Model:
        """The model of `system`."""
        return self.models[self.systems[system].model]

    def local(self, name: str) -> LocalModel:
        """Model `name`, whose weights are opened here.

        Raises:
            ValueError: It runs behind an API.
        """
        model = self.models[name].local
        if model is None:
            raise ValueError(f"models.{name}: runs behind an API; name a model with weights here")
        return model

    def thinking_budget(self, system: str) -> int | None:
        """Tokens that the model of `system` may think; None: its entry has no such key."""
        return getattr(self.model_of(system), "thinking_tokens", None)

    def early_stopping_of(self, system: str) -> EarlyStopping | None:
        """Early stopping that applies to `system`; None if it evaluates every length."""
        return None if self.systems[system].early_stopping is False else self.early_stopping

    def ancestors(self, name: str) -> Iterator[tuple[str, Model]]:
        """Model `name` and those that its weights start from, the nearest first.

        Ends at a name that is not in `models` or that repeats.
        """
        seen: set[str] = set()
        while name in self.models and name not in seen:
            seen.add(name)
            model = self.models[name]
            yield name, model
            if model.parent is None:
                return
            name = model.parent

    def root_model(self, name: str) -> str:
        """The model whose tokenizer model `name` uses, itself or another one."""
        other = self.models[name].tokenizer_of
        return self.root_model(other) if other in self.models else name
