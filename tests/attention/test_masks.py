"""Lazy masks against full ones, entry by entry."""

import pytest
import torch
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sliding_window_causal_mask_function,
)

from needlework.attention.masks import LazyMask

PADDING = {
    "none": None,
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right": [[1, 1, 1, 1, 1, 1, 1, 0, 0], [1] * 9],
    "both": [[0, 1, 1, 1, 1, 1, 1, 1, 0], [0] * 9],
}
TOTAL, ROWS = 9, 2
RULES = {"causal": causal_mask_function, "sliding": sliding_window_causal_mask_function(4)}


def lazy(padding="none", new=TOTAL, rule="causal"):
    real = PADDING[padding]
    return LazyMask(
        ROWS,
        new,
        TOTAL,
        TOTAL - new,
        mask_function=RULES[rule],
        attention_mask=None if real is None else torch.tensor(real).bool(),
    )


def real_tokens(padding):
    return torch.tensor(PADDING[padding] or [[1] * TOTAL] * ROWS).bool()


def reference(padding, rule, row, query, key):
    """Whether a query may attend to a key, from the definition."""
    if not 0 <= key <= query or not real_tokens(padding)[row, key]:
        return False
    return rule == "causal" or query - key < 4


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("new", [TOTAL, 4, 1])
@pytest.mark.parametrize("padding", PADDING)
def test_entries_match_the_definition(padding, new, rule):
    mask = lazy(padding, new, rule)
    rows = torch.arange(ROWS)[:, None, None]
    queries = torch.arange(TOTAL - new, TOTAL)[:, None]
    # Positions outside the cache are masked.
    keys = torch.arange(-2, TOTAL + 2)
    allowed = mask.at(rows, queries, keys).expand(ROWS, new, TOTAL + 4)
    for row in range(ROWS):
        for i, query in enumerate(range(TOTAL - new, TOTAL)):
            expected = [reference(padding, rule, row, query, key) for key in keys.tolist()]
            assert allowed[row, i].tolist() == expected


@pytest.mark.parametrize("padding", PADDING)
def test_first_and_end_are_those_of_the_real_tokens(padding):
    mask = lazy(padding)
    for row, real in enumerate(real_tokens(padding)):
        places = real.nonzero()[:, 0].tolist() or [TOTAL]
        assert mask.first[row] == places[0]
        assert mask.end[row] == (places[-1] + 1 if places != [TOTAL] else TOTAL)


@pytest.mark.parametrize("new", [TOTAL, 4, 1])
@pytest.mark.parametrize("padding", PADDING)
def test_causal_pairs_are_those_of_real_tokens(padding, new):
    real = real_tokens(padding)
    pairs = sum(
        int(real[row, : query + 1].sum())
        for row in range(ROWS)
        for query in range(TOTAL - new, TOTAL)
        if real[row, query]
    )
    assert lazy(padding, new).causal_pairs == pairs


def test_only_a_causal_mask_without_gaps_is_causal():
    assert [lazy(padding).is_causal for padding in PADDING] == [True, True, False, False]
    assert not lazy(rule="sliding").is_causal


@pytest.mark.parametrize("padding", ["none", "left"])
def test_a_window_keeps_sinks_and_recent_keys(padding):
    mask = lazy(padding)
    windowed = mask.windowed(2, 3, torch.tensor(mask.first))
    rows, places = torch.arange(ROWS)[:, None, None], torch.arange(TOTAL)
    allowed = windowed.at(rows, places[:, None], places)
    for row, first in enumerate(mask.first):
        for query in range(TOTAL):
            expected = [
                reference(padding, "causal", row, query, key)
                and (key < first + 2 or query - key < 3)
                for key in range(TOTAL)
            ]
            assert allowed[row, query].tolist() == expected
    assert windowed.window == (2, 3)
    assert lazy(rule="sliding").windowed(2, 3, torch.zeros(ROWS)).window is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_full_mask_is_that_of_transformers(implementation):
    mask = lazy("left", 4)
    expected = ALL_MASK_ATTENTION_FUNCTIONS[implementation](
        batch_size=ROWS,
        q_length=4,
        kv_length=TOTAL,
        q_offset=TOTAL - 4,
        kv_offset=0,
        mask_function=causal_mask_function,
        attention_mask=torch.tensor(PADDING["left"]).bool(),
    )
    assert torch.equal(mask.stock(implementation), expected)
    assert mask.stock(implementation) is mask.stock(implementation)


def test_a_mask_of_another_batch_is_refused():
    with pytest.raises(ValueError, match="has 1 rows, but the input has 2"):
        LazyMask(2, 3, 3, attention_mask=torch.ones(1, 3))


def test_use_as_a_tensor_is_refused():
    with pytest.raises(ValueError, match="belongs to an attention system that is removed"):
        torch.ones(1) + lazy()
