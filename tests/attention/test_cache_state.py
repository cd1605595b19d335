"""A method's tensors in the model's cache: what happens to keys and values happens to them."""

import pytest
import torch
from transformers import DynamicCache

from needlework.attention.cache_state import MethodState

BLOCK = 4


def filled(first, length):
    """A state whose tensor has the row's number in every entry."""
    state = MethodState(BLOCK)
    state.first, state.length = list(first), length
    rows = torch.arange(len(first), dtype=torch.float32)
    state.tensors = {0: {"scores": rows[:, None].repeat(1, 3)}, 2: {"sums": rows[:, None].clone()}}
    return state


def rows_of(state):
    rows = [tensors[name][:, 0].tolist() for tensors in state.tensors.values() for name in tensors]
    assert rows[0] == rows[1]
    return rows[0]


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    ],
)
def test_rows_follow_those_of_the_cache(change, rows):
    cache = DynamicCache()
    cache.update(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 5, 2), torch.zeros(3, 1, 5, 2), 0)
    state = filled([0, 1, 3], 5)
    cache.layers.append(state)
    change(cache)
    assert cache.layers[0].keys[:, 0, 0, 0].tolist() == rows
    assert rows_of(state) == rows
    assert state.first == [[0, 1, 3][row] for row in rows]


def test_a_new_cache_gets_the_state_after_its_layers():
    cache = DynamicCache()
    state = MethodState.get_or_create(cache, 3, BLOCK)
    assert [type(layer) for layer in cache.layers].index(MethodState) == 3
    assert MethodState.get_or_create(cache, 3, BLOCK) is state
    assert MethodState.get_or_create(None, 3, BLOCK).length == 0


def test_a_cache_with_unseen_tokens_is_refused():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2), 0)
    with pytest.raises(ValueError, match="has 5 tokens, but this attention method has seen 0"):
        MethodState.get_or_create(cache, 1, BLOCK)


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("length", [8, 9, 11])
def test_crops_within_complete_blocks_are_refused(first, length):
    """A cut is possible at a block's boundary, and within the last block, complete or not."""
    for removed in range(length - first):
        state = filled([first], length)
        before, after = length - first, length - first - removed
        is_boundary, is_in_last = after % BLOCK == 0, after > (before - 1) // BLOCK * BLOCK
        if is_boundary or is_in_last:
            state.crop(-removed)
            assert state.length == length - removed
        else:
            with pytest.raises(ValueError, match=f"crop: -{removed} would cut through a complete"):
                state.crop(-removed)
            assert state.length == length


def test_a_state_without_tensors_can_be_cropped_anywhere():
    state = MethodState(BLOCK)
    state.first, state.length = [0], 11
    assert state.is_croppable
    state.crop(-6)
    assert state.length == 5


def test_size_and_reset():
    state = filled([0, 0], 7)
    assert state.nbytes == 4 * (2 * 3 + 2)
    assert not state.is_croppable
    state.reset()
    assert (state.length, state.nbytes) == (0, 0)
