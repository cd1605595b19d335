"""The order that rows are drawn in."""

from collections.abc import Iterator, Sequence

import torch


def shuffled(numbers: Sequence[int], generator: torch.Generator) -> Iterator[int]:
    """The numbers without end; the order is drawn anew whenever all have been seen."""
    while True:
        for place in torch.randperm(len(numbers), generator=generator).tolist():
            yield numbers[place]


def mix(
    orders: Sequence[Iterator[int]],
    weights: Sequence[float],
    batch_size: int,
    choices: torch.Generator,
) -> Iterator[list[int]]:
    """Numbers of rows, `batch_size` a time, each from an order drawn by the weights."""
    chances = torch.tensor(weights, dtype=torch.float64)
    while True:
        drawn = torch.multinomial(chances, batch_size, replacement=True, generator=choices)
        yield [next(orders[i]) for i in drawn.tolist()]
