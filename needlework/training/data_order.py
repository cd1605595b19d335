"""The order in which training rows are drawn."""

from collections.abc import Iterator, Sequence

import torch


def cycle_shuffled(rows: Sequence[int], generator: torch.Generator) -> Iterator[int]:
    """Yield row numbers forever, in a new random order each epoch."""
    while True:
        for i in torch.randperm(len(rows), generator=generator).tolist():
            yield rows[i]


def mix_batches(
    orders: Sequence[Iterator[int]],
    weights: Sequence[float],
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[list[int]]:
    """Yield batches of `batch_size` row numbers; `weights` decide which order each comes from."""
    probabilities = torch.tensor(weights, dtype=torch.float64)
    while True:
        chosen = torch.multinomial(probabilities, batch_size, replacement=True, generator=generator)
        yield [next(orders[i]) for i in chosen.tolist()]
