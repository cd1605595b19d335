"""What the samples of a task at one length share, and what each has of its own."""

from random import Random
from typing import Any, NamedTuple

import polars as pl

from needlework.tasks.prompts.depth_sampler import Spread


class Setting(NamedTuple):
    """A task at one length."""

    length: int
    """Tokens (or characters, where the counter counts those) of prompt and answer."""
    stream: tuple[Any, ...]
    """Tells the random streams of what all samples share: JSON values."""
    haystack: pl.DataFrame | None = None
    """The text that the task's haystack names: columns sentence and tokens."""
    training: bool = False
    """Whether rows to train on are made: a pass key is none of those that are evaluated."""


class SampleContext(NamedTuple):
    """One sample."""

    random: Random
    index: int
    spread: Spread
