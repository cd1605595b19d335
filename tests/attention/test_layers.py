"""Attention modules of families in which other modules have a layer number too."""

import pytest
import torch
from support.every_family import tiny_model
from support.families import config_of
from transformers import AutoModelForCausalLM

from needlework.attention.apply import replaceable_layers
from needlework.attention.layers import attention_modules
from needlework.attention.seer.gates import Gates


@pytest.mark.parametrize(
    ("family", "kind", "layers"),
    [
        ("gemma3_text", "Gemma3Attention", [0, 1, 2, 3]),
        ("falcon_h1", "FalconH1Attention", [0, 1, 2, 3]),
        ("qwen3_next", "Qwen3NextAttention", [3]),
        ("mamba2", None, []),
    ],
)
def test_attention_modules_exclude_other_mixers(family, kind, layers):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(family))
    modules = attention_modules(model)
    assert [layer for layer, _ in modules] == layers
    assert {type(module).__name__ for _, module in modules} <= {kind}


@pytest.mark.parametrize("family", ["exaone4", "exaone_moe"])
def test_kinds_of_the_config_come_before_attributes_of_modules(family):
    # Every module of a hybrid model has a sliding_window.
    assert replaceable_layers(tiny_model(family)) == [1, 3]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("doge", "doge makes a mask from the values of each layer"),
        ("gemma4_text", "gemma4_text shares keys and values among its last layers"),
        ("hrm_text", "hrm_text computes its layers several times in one forward"),
        ("minimax", "minimax needs a cache of its own class"),
        ("zamba2", "zamba2 shares attention modules among layers"),
    ],
)
def test_refuses_layers_that_only_look_replaceable(family, reason):
    with pytest.raises(ValueError, match=reason):
        replaceable_layers(tiny_model(family))


@pytest.mark.parametrize("family", ["gpt2", "biogpt", "bart", "opt"])
def test_gates_refuse_learned_positions(family):
    with pytest.raises(ValueError, match="adds positions to its embeddings"):
        Gates.new(tiny_model(family), block_size=8)


@pytest.mark.parametrize("family", ["phi", "persimmon", "stablelm", "nemotron"])
def test_gates_take_rope_of_a_part_of_the_dimensions(family):
    assert Gates.new(tiny_model(family), block_size=8).description.layers == (0, 1, 2, 3)
