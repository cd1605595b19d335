"""Inputs of a task's prompt builder: those that all samples share, and those of one sample."""

from dataclasses import dataclass
from random import Random
from typing import Any

import polars as pl

from needlework.tasks.prompts.depth_sampler import DepthSampler


@dataclass(frozen=True)
class TaskContext:
    """A task at one length: what all of its samples share."""

    length: int
    """Tokens of prompt and answer, or characters of the prompt where the counter counts those."""
    seed_parts: tuple[Any, ...]
    """JSON values that seed the random streams of everything the samples share."""
    haystack: pl.DataFrame | None = None
    """Sentences of the user's haystack text (columns sentence, tokens), or None."""
    training: bool = False
    """Whether training rows are generated. They never use an evaluation pass key."""


@dataclass(frozen=True)
class SampleContext:
    """One sample: its random generator, its number, and the depths of its needles."""

    random: Random
    index: int
    depth_sampler: DepthSampler
