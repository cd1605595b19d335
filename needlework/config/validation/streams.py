"""Validation of streams against the systems that read them."""

from collections.abc import Iterator

from needlework.config.attention.seer import Seer
from needlework.config.errors import Location, Problem, suggest
from needlework.config.experiment import Experiment
from needlework.config.model_info import BEHIND_API, is_behind_api, max_positions
from needlework.config.paths import source_problems
from needlework.config.streams import Stream
from needlework.config.validation.gates import seer_problems


def stream_problems(experiment: Experiment) -> Iterator[Problem]:
    """Problems with the experiment's streams, in file order."""
    for name, stream in experiment.streams.items():
        where = ("streams", name)
        if stream.path is not None:
            yield from source_problems((*where, "path"), stream.path)
        for system in stream.systems or experiment.systems:
            yield from _reader_problems(experiment, where, stream, system)


def _reader_problems(
    experiment: Experiment, where: Location, stream: Stream, system: str
) -> Iterator[Problem]:
    """Reasons why `system` cannot read the stream at `where`."""
    own = (*where, "systems", system) if system in stream.systems else where
    reader = stream.read_by(system)
    if reader.model is None and system not in experiment.systems:
        yield own, f"unknown system; {suggest(experiment.systems, system)}, or set `model` here"
        return
    if reader.model is not None and system in experiment.systems:
        yield (
            (*own, "model"),
            "is already set under systems; remove it, or rename this entry",
        )
        return
    if reader.chunk_size is not None and (reader.overlap or 0) >= reader.chunk_size:
        yield (
            (*own, "overlap"),
            f"must be below chunk_size {reader.chunk_size}; write at most {reader.chunk_size - 1}",
        )
    model = reader.model or experiment.systems[system].model
    if model not in experiment.models:
        if reader.model is not None:
            yield (*own, "model"), "unknown model; " + suggest(experiment.models, model)
        return
    if is_behind_api(experiment, model):
        if stream.systems:
            yield (own if reader.model is None else (*own, "model")), BEHIND_API
        else:
            yield (
                where,
                f"is read by all systems, including `{system}`, which is behind an API; list the "
                "others under the stream's systems",
            )
        return
    if reader.attention is not None and (reader.model is None or reader.attention.converts_model):
        yield (
            (*own, "attention"),
            "needs `model` next to it, and an attention that is applied at evaluation rather than "
            "part of the model's weights",
        )
    elif isinstance(reader.attention, Seer):
        yield from seer_problems(experiment, own, model, reader.attention)
    attention = reader.attention if reader.model else experiment.systems[system].attention
    key = None if attention is None else attention.prompt_length_key
    if key is not None and not reader.overlap:
        yield (
            own,
            f"`{key}` of system `{system}` depends on where the text ends, which a stream does not "
            "know; set it to 0 or remove it there, or set an overlap here",
        )
    limit = max_positions(experiment, model)
    if limit is not None and not reader.overlap and (stream.tokens or limit + 1) > limit:
        yield (
            (*where, "tokens"),
            f"may exceed the {limit} positions of model `{model}`, because system `{system}` "
            f"carries its state; write at most {limit}, set an overlap for it, or set "
            f"`allow_extrapolation: true` in models.{model}",
        )
