"""The experiment file as one model: what is made, opened, compared, on which data."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from needlework.config.attention import AnyAttention
from needlework.config.base import Name, Strict
from needlework.config.depths import Depths
from needlework.config.gates import SeerGates
from needlework.config.models import AnyModel, Api, Derived
from needlework.config.streams import Stream
from needlework.config.tasks import AnyExamples, AnyTask, Haystack


def _one_value(value: Any) -> Any:
    if isinstance(value, list | dict):
        raise ValueError("write one value in each place, such as [4, 8]")
    return value


# Its type is the parameter's own, and checked as such where the sweep is expanded.
_Value = Annotated[
    int | float | bool | str | None,
    PlainValidator(_one_value, json_schema_input_type=int | float | bool | str | None),
]


class EarlyStopping(Strict):
    """How lengths are climbed: shortest first, until a system cannot or need not go on."""

    min_accuracy: float = Field(
        0.1,
        ge=0,
        le=1,
        description="a system whose accuracy on a task is below, at two lengths one after the "
        "other, is not asked it at longer ones; 0: never stopped by accuracy",
    )


class EffectiveLength(Strict):
    """What a system is to reach at a length for that to count as used; a score is the mean accuracy
    over all tasks."""

    score: float = Field(
        0.856, gt=0, le=1, description="the same for all systems; RULER's is 0.856"
    )
    share: float = Field(
        0.85,
        gt=0,
        le=1,
        description="of the system's own score at the shortest length; NoLiMa's is 0.85",
    )


def _as_ladder(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class System(Strict):
    """What is compared: a model, with the attention it is evaluated under."""

    model: Name = Field(description="a name under models")
    attention: AnyAttention | None = Field(None, description="null: the model's own attention")
    sweep: (
        Annotated[dict[str, Annotated[list[_Value], Field(min_length=1)]], Field(min_length=1)]
        | None
    ) = Field(
        None,
        description="parameters of the attention, each with its values: a system for each "
        "combination, named {name}_{key}{value}; `walk` with {top_k_blocks: [4, 8]} gives "
        "walk_top_k_blocks4 and walk_top_k_blocks8",
    )
    family: Name | None = Field(
        None, description="systems that figures show as one kind; a sweep's have its name"
    )
    early_stopping: bool | None = Field(
        None,
        description="false: answers all lengths, whatever the experiment's early_stopping says; null: as "
        "it says",
    )


class Experiment(Strict):
    """One experiment: everything under results/{experiment}/ follows from it."""

    experiment: Name = Field(description="names the folder under results/")
    seed: int = Field(42, ge=0, description="root of every random stream")
    models: dict[Name, AnyModel] = Field(min_length=1, description="what is opened or made")
    finetune_data: dict[Name, AnyExamples] = Field({}, description="rows to train on")
    gates: dict[Name, SeerGates] = Field({}, description="gates made for systems of type seer")
    systems: dict[Name, System] = Field(min_length=1, description="what is compared")
    baseline: Name | None = Field(None, description="the system that others are compared with")
    tasks: dict[Name, AnyTask] = Field(min_length=1, description="what is asked")
    haystacks: dict[Name, Haystack] = Field({}, description="text of yours to hide needles in")
    lengths: list[int] = Field(
        min_length=1, description="tokens of prompt and answer together, or characters of a prompt"
    )
    length_unit: Literal["tokens", "characters"] = Field("tokens", description="of lengths")
    depths: Depths = Field(
        [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
        validate_default=True,
        description="percent of the haystack before a needle, a list, {linear: 11}, {sigmoid: 11} "
        "or uniform; samples are spread evenly over them",
    )
    samples: int = Field(22, ge=1, description="samples of each task at each length")
    early_stopping: Annotated[
        EarlyStopping | None,
        BeforeValidator(_as_ladder, json_schema_input_type=bool | EarlyStopping | None),
    ] = Field(
        None,
        description="true, or its keys: each system answers a task at one length after the "
        "other, and stops, with the reason on record, when memory runs out, the model refuses a "
        "length, or accuracy stays below the floor",
    )
    effective_length: EffectiveLength = Field(
        EffectiveLength(), description="when a length counts as used"
    )
    device: str = Field(
        "cpu",
        description="what `needlework plan` and the jobs' resources reckon with: one of "
        "resources/devices.yaml",
    )
    streams: dict[Name, Stream] = Field({}, description="long texts to measure perplexity on")
    package: Name | None = Field(None, description="a model to package with a model card")

    def stream_systems(self) -> list[str]:
        """Names of the systems that streams have of their own."""
        named = (name for stream in self.streams.values() for name in stream.systems)
        return [name for name in dict.fromkeys(named) if name not in self.systems]

    def is_api(self, system: str) -> bool:
        """Whether `system` answers through an API."""
        return isinstance(self.models[self.systems[system].model], Api)

    def early_stopping_of(self, system: str) -> EarlyStopping | None:
        """How `system` climbs the lengths; None: each on its own."""
        return None if self.systems[system].early_stopping is False else self.early_stopping

    def root_model(self, name: str) -> str:
        """The model at the end of `base` and of an API's `tokenizer`: whose tokenizer it uses."""
        while isinstance(model := self.models[name], Derived):
            name = model.base
        if isinstance(model, Api) and model.tokenizer in self.models:
            return self.root_model(model.tokenizer)
        return name
