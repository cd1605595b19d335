"""Small models of the decoder families that Infini-attention supports."""

import functools

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
)

from needlework.config.attention.infini import Infini
from needlework.models.convert import convert

TOKENS = 24
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Settings besides the common ones, layers with full attention, and those of them without RoPE.
FAMILIES = {
    "llama": ({}, [0, 1, 2, 3], []),
    "qwen2": ({}, [0, 1, 2, 3], []),
    "qwen3": ({}, [0, 1, 2, 3], []),
    "qwen3_moe": (
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        [0, 1, 2, 3],
        [],
    ),
    "mistral": ({"sliding_window": None}, [0, 1, 2, 3], []),
    "mixtral": ({**EXPERTS, "sliding_window": None}, [0, 1, 2, 3], []),
    "phi": ({}, [0, 1, 2, 3], []),
    "phi3": ({"sliding_window": None}, [0, 1, 2, 3], []),
    "gpt_neox": ({}, [0, 1, 2, 3], []),
    "granite": ({}, [0, 1, 2, 3], []),
    "cohere": ({}, [0, 1, 2, 3], []),
    "glm4": ({}, [0, 1, 2, 3], []),
    "smollm3": ({}, [0, 1, 2, 3], [3]),
    "olmo2": ({}, [0, 1, 2, 3], []),
    "olmo3": ({}, [3], []),
    "cohere2": ({}, [3], [3]),
    "gemma2": ({"query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.0}, [1, 3], []),
    "gemma3_text": ({"layer_types": ["sliding_attention", "full_attention"] * 2}, [1, 3], []),
    "gpt_oss": (EXPERTS, [1, 3], []),
    "minimax_m2": (EXPERTS, [0, 1, 2, 3], []),
}
MIXED = ["olmo3", "cohere2", "gemma2", "gemma3_text", "gpt_oss"]


def configuration(model_type, **changes):
    common = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.15,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config_class = CONFIG_MAPPING[model_type]
    if hasattr(config_class(), "sliding_window"):
        common["sliding_window"] = 6
    return config_class(**{**common, **changes})


@functools.cache
def stock(model_type):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration(model_type, **FAMILIES[model_type][0]))
    # Norms, biases and sinks start at 1 or 0, which would hide mistakes about them.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def converted(model_type, **parameters):
    """The stock model converted, with different gates in each head and layer."""
    torch.manual_seed(1)
    return convert(stock(model_type), Infini(balance_init_type="randn", **parameters))


def tokens(rows=2, columns=TOKENS):
    """Ids and mask; the last row has padding on the left."""
    ids = torch.randint(1, 40, (rows, columns), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, :5] = 0
    return ids, mask


def logits(model, ids, mask):
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return out[mask.bool()]
