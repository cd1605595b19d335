import pytest
import torch

from needlework.attention.base import Forward
from needlework.attention.blocks import Blocks, choose
from needlework.attention.cache_state import MethodState
from needlework.attention.masks import LazyMask


@pytest.fixture(scope="session")
def select():
    return _select


@pytest.fixture(scope="session")
def check_future():
    return _check_future


def _check_future(selector, size=4):
    """Assert that tokens from block 6 on move neither scores nor choice of the rows before it."""
    torch.manual_seed(0)
    cut = 6 * size
    query, key = torch.randn(3, 2, 4, 10 * size, 8), torch.randn(3, 2, 2, 10 * size, 8)
    others = query.clone(), key.clone()
    for x in others:
        x[..., cut:, :] = torch.randn_like(x[..., cut:, :]) * 3
    lengths = [10 * size, 8 * size]
    ((_, one, _, kept),) = _select(selector, [10 * size], query, key, lengths)
    ((_, two, _, also),) = _select(selector, [10 * size], *others, lengths)
    for layer in range(3):
        for b, rows in enumerate([6, 4]):
            past = torch.ones(rows, 10, dtype=torch.bool).tril()
            before, after = (x[layer][b, ..., :rows, :][..., past] for x in (one, two))
            torch.testing.assert_close(before, after)
            choices, changed = kept[layer][b], also[layer][b]
            if one[layer].ndim == 3:
                choices, changed = [choices], [changed]
            for rows_kept, rows_changed in zip(choices, changed, strict=True):
                assert rows_kept[:rows] == rows_changed[:rows]
                assert all(max(row) == i for i, row in enumerate(rows_kept[:rows]))
    assert kept != also


def _select(selector, forwards, query, key, lengths, prompt_tokens=0, terms=None):
    """What a selector does in a run of forwards, given as numbers of new tokens.

    query, key: a list over layers of [batch, heads, tokens, d], rows of `lengths` real tokens,
    padded on the left. Yields for each forward (blocks, its layers' scores, its layers' walks, its
    layers' sets of kept blocks [batch][row], or [batch][choice][row]).
    """
    system, total = selector.system, query[0].shape[2]
    real = torch.zeros(len(lengths), total, dtype=torch.bool)
    for row, length in zip(real, lengths, strict=True):
        row[total - length :] = True
    state, start, found = MethodState(system.block_size), 0, []
    for new in forwards:
        end = start + new
        mask = LazyMask(len(real), new, end, start, attention_mask=real[:, :end])
        forward = Forward(state, prompt_tokens)
        forward.blocks = Blocks(mask, system, torch.device("cpu"))
        forward.terms = terms or {}
        scores, walks, kept = [], [], []
        for layer, (q, k) in enumerate(zip(query, key, strict=True)):
            tensors = layer, q[:, :, start:end], k[:, :, :end], forward
            if system.is_dense(forward.stage):
                selector.observe(*tensors)
                scores.append(None)
            else:
                scores.append(selector.scores(*tensors))
            walks.append(forward.shared.get("walk"))
            if scores[-1] is None:
                kept.append(None)
                continue
            chosen = choose(scores[-1], forward.blocks).tolist()
            kept.append(_sets(chosen))
        found.append((forward.blocks, scores, walks, kept))
        start = end
    return found


def _sets(chosen):
    """Nested lists of block numbers as lists of sets, without -1."""
    if chosen and isinstance(chosen[0], int):
        return set(chosen) - {-1}
    return [_sets(part) for part in chosen]
