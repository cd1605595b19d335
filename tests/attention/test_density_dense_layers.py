"""Density of a model whose first layers stay dense, against masks of n x n."""

import pytest
import torch
from support.tiny_models import prompts, run, tiny
from transformers import DynamicCache, OPTConfig, OPTModel

from needlework.attention.apply import apply
from needlework.config.attention.random import Random
from needlework.config.attention.window import Window

TOKENS, PROMPT, LENGTHS = 70, 64, [70, 45]


def _pairs(is_sparse):
    """Kept pairs by stage of one layer, from the mask of each row of a batch padded on the left."""
    counts = {"prefill": 0, "decode": 0}
    for length in LENGTHS:
        keep = torch.ones(length, length, dtype=torch.bool).tril()
        if is_sparse:
            query, key = torch.arange(length)[:, None], torch.arange(length)
            keep &= (key < 4) | (query - key < 20)
        prompt = length - (TOKENS - PROMPT)
        counts["prefill"] += int(keep[:prompt].sum())
        counts["decode"] += int(keep[prompt:].sum())
    return counts


@pytest.mark.parametrize("chunks", [[64], [24, 24, 16]], ids=str)
def test_density_of_the_model_counts_dense_layers_as_1(chunks):
    model = tiny(differing={"num_hidden_layers": 3})
    system = Window(block_size=8, sink_tokens=4, recent_tokens=20, dense_layers=2)
    with apply(model, system) as handle:
        inputs = prompts(LENGTHS)
        handle.prompt_tokens = PROMPT
        cache = DynamicCache(config=model.config)
        run(model, inputs["input_ids"], [*chunks, *[1] * 6], inputs["attention_mask"], cache=cache)
        density = handle.density()
    dense, sparse = _pairs(False), _pairs(True)
    for stage in ("prefill", "decode"):
        own = sparse[stage] / dense[stage]
        assert getattr(density, f"sparse_layers_{stage}") == pytest.approx(own, abs=1e-9)
        assert getattr(density, stage) == pytest.approx((2 + own) / 3, abs=1e-9)
    counted = {(one.layer, one.stage): one for one in density.layers}
    assert counted.keys() == {(i, stage) for i in range(3) for stage in ("prefill", "decode")}
    for (layer, stage), one in counted.items():
        assert one.is_sparse == (layer == 2)
        assert one.kept == pytest.approx((sparse if one.is_sparse else dense)[stage])
        assert one.pairs == dense[stage]


def test_a_stage_that_stays_dense_has_density_1():
    model = tiny(differing={"num_hidden_layers": 3})
    system = Random(block_size=8, density=0.5, dense_layers=1, stages="prefill")
    with apply(model, system) as handle:
        run(model, prompts([70])["input_ids"], [64, *[1] * 6], cache=DynamicCache())
        density = handle.density()
    assert density.decode == density.sparse_layers_decode == 1
    assert density.prefill == pytest.approx((1 + 2 * density.sparse_layers_prefill) / 3)
    assert [one.is_sparse for one in density.layers if one.stage == "decode"] == [False, True, True]


@pytest.mark.parametrize("family", ["gemma3", "qwen3-next"])
def test_only_full_attention_layers_count(family):
    differing = {"num_hidden_layers": 4}
    kinds = {
        "gemma3": ["full_attention", "sliding_attention"] * 2,
        "qwen3-next": ["full_attention", "linear_attention"] * 2,
    }
    model = tiny(family, differing={**differing, "layer_types": kinds[family]})
    with apply(model, Random(block_size=8, density=0.5, dense_layers=1)) as handle:
        run(model, prompts([64])["input_ids"], [64])
        density = handle.density()
    assert [(one.layer, one.is_sparse) for one in density.layers] == [(0, False), (2, True)]
    assert density.prefill == pytest.approx((1 + density.sparse_layers_prefill) / 2)


def test_a_base_model_around_a_decoder_counts_once():
    shape = {"hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 32, "num_hidden_layers": 3}
    config = OPTConfig(**shape, vocab_size=64, word_embed_proj_dim=32, max_position_embeddings=128)
    model = OPTModel(config).eval()
    with apply(model, Random(block_size=8, density=0.5, dense_layers=1)) as handle:
        model(**prompts([64]))
        assert {one.pairs for one in handle.density().layers} == {64 * 65 // 2}
