"""Scores of the row before, for whole and chunked prefills."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from needlework.attention.blocks import Blocks
from needlework.attention.cache_state import MethodState
from needlework.attention.causal_choice import past_scores
from needlework.attention.masks import LazyMask
from needlework.config.attention.random import Random

SIZE = 4


def forward_of(state, first, start, total):
    """A forward with tokens start .. total - 1, padded on the left up to `first`."""
    real = torch.stack([torch.arange(total) >= n for n in first])
    mask = LazyMask(len(first), total - start, total, start, attention_mask=real)
    system = Random(block_size=SIZE, density=0.5)
    return SimpleNamespace(blocks=Blocks(mask, system, torch.device("cpu")), state=state)


def past_of(all_scores, first, cuts):
    """What each row of blocks chooses by [batch, blocks, blocks], in forwards of cuts' tokens."""
    state, result = MethodState(SIZE), torch.full_like(all_scores, torch.nan)
    for start, total in pairwise(cuts):
        forward = forward_of(state, first, start, total)
        blocks = forward.blocks
        scores = torch.full((len(first), blocks.rows, blocks.count), -torch.inf)
        for b, begin in enumerate(blocks.begin):
            part = all_scores[b, begin : begin + blocks.rows, : blocks.count]
            scores[b, : len(part), : part.shape[1]] = part
        past = past_scores(scores, 0, forward)
        for b, begin in enumerate(blocks.begin):
            rows = min(blocks.rows, len(all_scores[b]) - begin)
            result[b, begin : begin + rows, : blocks.count] = past[b, :rows]
    return result


@pytest.mark.parametrize("first", [[0, 0], [4, 0]])
@pytest.mark.parametrize("cuts", [[0, 20], [0, 8, 20], [0, 4, 12, 16, 20]])
def test_rows_choose_by_the_row_before(first, cuts):
    scores = torch.rand(2, 5, 5).tril()
    past = past_of(scores, first, cuts)
    for b, n in enumerate(first):
        assert past[b, 0].isneginf().logical_or(past[b, 0].isnan()).all()
        for row in range(1, (20 - n) // SIZE):
            # Of the row before, only its own past can be chosen from.
            assert torch.equal(past[b, row, :row], scores[b, row - 1, :row])


def test_a_state_that_lacks_the_row_before_is_refused():
    state = MethodState(SIZE)
    past_scores(torch.rand(1, 2, 2), 0, forward_of(state, [0], 0, 8))
    with pytest.raises(ValueError, match="decode or crop changed the blocks before these tokens"):
        past_scores(torch.rand(1, 2, 5), 0, forward_of(state, [0], 12, 20))
