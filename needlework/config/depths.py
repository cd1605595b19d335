"""Depths of needles: a list, linear or sigmoid spacing, or uniformly random."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from needlework.config.base import Percent

_SPACINGS = ("linear", "sigmoid")
_EXPECTED = "write a list of percents, `uniform`, `{linear: 11}` or `{sigmoid: 11}`"


def linear(count: int) -> list[float]:
    """`count` depths in percent, evenly spaced from 0 to 100."""
    return [round(100 * i / (count - 1), 3) for i in range(count)] if count > 1 else [50.0]


def sigmoid(count: int) -> list[float]:
    """`count` depths in percent from 0 to 100, denser towards both ends.

    The logistic function 100 / (1 + exp(-(x - 50) / 10)) of evenly spaced depths x, with the ends
    moved to 0 and 100, as in needle-in-a-haystack grids.
    """
    inner = [round(100 / (1 + math.exp(-(x - 50) / 10)), 3) for x in linear(count)]
    return [0.0, *inner[1:-1], 100.0] if count > 1 else inner


def _expand(value: Any) -> Any:
    if value == "uniform" or isinstance(value, list):
        return value
    if isinstance(value, dict) and len(value) == 1:
        (spacing, count), *_ = value.items()
        if spacing in _SPACINGS and type(count) is int and 1 <= count <= 101:
            return linear(count) if spacing == "linear" else sigmoid(count)
    raise ValueError(_EXPECTED)


Depths = Annotated[
    Annotated[Literal["uniform"], Tag("uniform")]
    | Annotated[list[Percent], Field(min_length=1), Tag("list")],
    Discriminator(lambda value: "uniform" if value == "uniform" else "list"),
    BeforeValidator(_expand),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "uniform"},
                {
                    "type": "array",
                    "items": {"type": "number", "minimum": 0, "maximum": 100},
                    "minItems": 1,
                },
                {
                    "type": "object",
                    "properties": {
                        spacing: {"type": "integer", "minimum": 1, "maximum": 101}
                        for spacing in _SPACINGS
                    },
                    "additionalProperties": False,
                    "minProperties": 1,
                    "maxProperties": 1,
                },
            ]
        }
    ),
]
"""Depths in percent of the haystack; `uniform`: any depth, evenly spread over the samples."""
