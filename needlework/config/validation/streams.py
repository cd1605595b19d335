"""Streams that no system of theirs can read."""

from collections.abc import Iterator

from needlework.config.errors import Problem, one_of
from needlework.config.experiment import Experiment
from needlework.config.model_info import BEHIND_API, is_behind_api, max_positions
from needlework.config.paths import source_problems
from needlework.config.validation.gates import seer_problems


def stream_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong with the experiment's streams, in the file's order."""
    for name, stream in experiment.streams.items():
        where = ("streams", name)
        path = stream.path
        if path is not None:
            yield from source_problems((*where, "path"), path)
        for system in stream.systems or experiment.systems:
            own = (*where, "systems", system) if system in stream.systems else where
            how = stream.read_by(system)
            if how.model is None and system not in experiment.systems:
                yield (
                    own,
                    f"names no system; {one_of(experiment.systems, system)}, or give it a model",
                )
                continue
            if how.model is not None and system in experiment.systems:
                yield (*own, "model"), "is that of the system; leave it out, or write another name"
                continue
            if how.chunk_size is not None and how.overlap >= how.chunk_size:
                yield (
                    (*own, "overlap"),
                    f"of {how.overlap} is not below chunk_size {how.chunk_size}; write at most "
                    f"{how.chunk_size - 1}",
                )
            model = how.model or experiment.systems[system].model
            if model not in experiment.models:
                if how.model is not None:
                    yield (*own, "model"), "names no model; " + one_of(experiment.models, model)
                continue
            if is_behind_api(experiment, model):
                at = (*own, "model") if how.model is not None else own
                yield (
                    (at, BEHIND_API)
                    if stream.systems
                    else (
                        where,
                        f"is read by all systems, `{system}` too, which is behind an API; "
                        "name the others under its systems",
                    )
                )
                continue
            if how.attention is not None and (how.model is None or how.attention.converts_model):
                yield (
                    (*own, "attention"),
                    "is for a system of the stream's own, put on a model; write `model` beside it, "
                    "and no attention that is part of a model's weights",
                )
            elif how.attention is not None and how.attention.type == "seer":
                yield from seer_problems(experiment, own, model, how.attention)
            attention = how.attention if how.model else experiment.systems[system].attention
            key = getattr(attention, "counts_on_the_end", None)
            if key is not None and not how.overlap:
                yield (
                    own,
                    f"`{key}` of system `{system}` counts on the text's end, which a stream does "
                    "not know; write 0 or leave it out there, or set an overlap here",
                )
            limit = max_positions(experiment, model)
            if limit is not None and not how.overlap and (stream.tokens or limit + 1) > limit:
                yield (
                    (*where, "tokens"),
                    f"may go beyond the {limit} positions of model `{model}`, whose state system "
                    f"`{system}` carries; write at most {limit}, an overlap for it, or "
                    f"`allow_extrapolation: true` in models.{model}",
                )
