"""Subsampled randomised Hadamard transform: a sketch that keeps inner products in expectation."""

import torch
from torch import Tensor


def hadamard_sketch(d: int, sketch_dim: int, seed: int) -> Tensor:
    """Subsampled randomised Hadamard transform as a matrix [d, r], float32: x @ S sketches x.

    Random signs, then r = sketched_dim(d, sketch_dim) coordinates of the Walsh-Hadamard transform,
    scaled so that E<x S, y S> = <x, y>.
    """
    padded = 1 << (d - 1).bit_length()
    r = sketched_dim(d, sketch_dim)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (d, 1), generator=generator) * 2.0 - 1
    coordinates = torch.randperm(padded, generator=generator)[:r]
    hadamard = torch.ones(1, 1)
    while len(hadamard) < padded:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    return signs * hadamard[:d, coordinates] * r**-0.5


def sketched_dim(d: int, sketch_dim: int | None) -> int:
    """Coordinates of the sketch: at most d padded to a power of two; d without a sketch."""
    return d if sketch_dim is None else min(sketch_dim, 1 << (d - 1).bit_length())
