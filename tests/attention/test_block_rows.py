"""Tensors by block, written forward by forward, against one write of everything."""

from itertools import pairwise

import pytest
import torch

from needlework.attention.block_rows import write_rows
from needlework.attention.blocks import Blocks
from needlework.attention.masks import LazyMask
from needlework.config.attention.random import Random

SIZE, TOTAL = 4, 22
SYSTEM = Random(block_size=SIZE, density=0.5)


def blocks_of(first, start, total):
    """Blocks of a forward with tokens start .. total - 1, padded on the left up to `first`."""
    real = torch.stack([torch.arange(total) >= n for n in first])
    mask = LazyMask(len(first), total - start, total, start, attention_mask=real)
    return Blocks(mask, SYSTEM, torch.device("cpu"))


@pytest.mark.parametrize("first", [[0, 0], [0, 3], [5, 2]])
@pytest.mark.parametrize("cuts", [[0, 22], [0, 8, 22], [0, 7, 9, 10, 17, 22]])
def test_forwards_fill_the_rows_of_one_forward(first, cuts):
    values = torch.rand(len(first), 3, 6, 6)
    stored = None
    for start, total in pairwise(cuts):
        blocks = blocks_of(first, start, total)
        rows = torch.zeros(len(first), 3, blocks.rows, blocks.count)
        for b, begin in enumerate(blocks.begin):
            part = values[b, :, begin : begin + blocks.rows, : blocks.count]
            rows[b, :, : part.shape[1]] = part
        stored = write_rows(stored, rows, blocks)
        assert stored.shape[-2:] == (blocks.count, blocks.count)
    for b, n in enumerate(first):
        for row in range(-(-(TOTAL - n) // SIZE)):
            # Blocks after the row were not there when it was written.
            assert torch.equal(stored[b, :, row, : row + 1], values[b, :, row, : row + 1])


def test_a_cropped_cache_drops_its_blocks():
    whole = write_rows(None, torch.rand(1, 5, 5), blocks_of([0], 0, 20))
    blocks = blocks_of([0], 8, 11)
    cropped = write_rows(whole.clone(), torch.ones(1, blocks.rows, blocks.count), blocks)
    assert cropped.shape == (1, 3, 3)
    assert torch.equal(cropped[:, :2], whole[:, :2, :3])
    assert torch.equal(cropped[:, 2:], torch.ones(1, 1, 3))
