"""Changes of a cache's rows, and whether the state of an applied method follows them."""

import pytest
import torch
from support.tiny_models import prompts, run
from transformers import DynamicCache

from needlework.attention.apply import apply

every_batch_change = pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    ],
    ids=["reorder", "select", "repeat"],
)
"""A change, and the rows of the batch that are there after it."""


def assert_state_follows(model, system, change, rows):
    """Decoding after the change continues the rows that it leaves."""
    inputs = prompts([70, 60])
    more = prompts([10, 10], seed=1)["input_ids"]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
    with apply(model, system):
        whole = run(model, torch.cat([inputs["input_ids"], more], 1), [70, *[1] * 10], mask)
        cache = DynamicCache(config=model.config)
        run(model, inputs["input_ids"], [70], inputs["attention_mask"], cache)
        change(cache)
        result = run(model, more[rows], [1] * 10, mask[rows], cache)
    torch.testing.assert_close(result, whole[rows, 70:], rtol=0, atol=1e-4)
