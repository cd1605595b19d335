"""Eviction from the cache of the window method, against the list of tokens that stay."""

import pytest
import torch
from support.tiny_models import prompts, run, tiny
from transformers import DynamicCache

from needlework.attention.apply import apply
from needlework.attention.eviction import Eviction, grows
from needlework.config.attention.random import Random
from needlework.config.attention.window import Window

SYSTEM = {"block_size": 4, "sink_tokens": 2, "recent_tokens": 6, "dense_layers": 0}


def test_sinks_and_recent_tokens_stay():
    model, ids = tiny(), prompts([30])["input_ids"]
    with apply(model, Window(**SYSTEM)) as handle:
        evict, cache = Eviction(handle), DynamicCache(config=model.config)
        run(model, ids, [30], cache=cache)
        assert evict.supports(cache)
        before = [(layer.keys, layer.values) for layer in cache.layers if grows(layer)]
        evict(cache)
        # The query that comes next is the sixth recent token.
        kept = [0, 1, *range(25, 30)]
        after = [(layer.keys, layer.values) for layer in cache.layers if grows(layer)]
        assert len(after) == 4
        for old, new in zip(before, after, strict=True):
            for x, y in zip(old, new, strict=True):
                assert torch.equal(x[:, :, kept], y)
        assert cache.layers[-1].length == cache.get_seq_length() == len(kept)
        evict(cache)
        assert cache.get_seq_length() == len(kept)


def test_a_short_cache_keeps_every_token_once():
    model, ids = tiny(), prompts([4])["input_ids"]
    with apply(model, Window(**SYSTEM)) as handle:
        cache = DynamicCache(config=model.config)
        run(model, ids, [4], cache=cache)
        keys = cache.layers[0].keys
        Eviction(handle)(cache)
        assert torch.equal(cache.layers[0].keys, keys)


def test_the_next_token_is_that_of_the_full_cache():
    model, ids = tiny(), prompts([31])["input_ids"]
    with apply(model, Window(**SYSTEM)) as handle:
        expected = run(model, ids, [30, 1])[:, -1]
        cache = DynamicCache(config=model.config)
        run(model, ids, [30], cache=cache)
        Eviction(handle)(cache)
        with torch.inference_mode():
            out = model(
                input_ids=ids[:, 30:],
                position_ids=torch.tensor([[30]]),
                past_key_values=cache,
            )
    torch.testing.assert_close(out.logits[:, -1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "supported"),
    [({}, True), ({"dense_layers": 1}, False), ({"stages": "prefill"}, False)],
)
def test_a_layer_that_needs_all_keys_prevents_it(changes, supported):
    model = tiny()
    with apply(model, Window(**SYSTEM | changes)) as handle:
        assert Eviction(handle).supports(DynamicCache(config=model.config)) is supported


def test_another_method_is_refused():
    model = tiny()
    with (
        apply(model, Random(block_size=4, density=0.5)) as handle,
        pytest.raises(TypeError, match="Random: does not support cache eviction; use Window"),
    ):
        Eviction(handle)
