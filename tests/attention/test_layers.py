"""Attention modules of families in which other modules have a layer number too."""

import pytest
import torch
from support.families import config_of
from transformers import AutoModelForCausalLM

from needlework.attention.layers import attention_modules


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
