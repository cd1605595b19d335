"""A tiny random model of every family with a causal language model in transformers.

Sizes of a family's default configuration are replaced by small ones, chosen by the names of its
keys; families with sizes that must fit each other have entries of their own.
"""

import re
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

LAYERS = 4
# Pattern of a key, and its value; the first match counts.
_SIZES: list[tuple[str, Any]] = [
    (r".*vocab_size.*", 64),
    (r"pad_token_id|eos_token_id|bos_token_id|.*_token_id", 0),
    (r"max_position_embeddings|n_positions|max_seq_len|seq_length|n_ctx|max_sequence_length", 512),
    (r"num_hidden_layers|n_layers?|num_layers|decoder_layers|num_decoder_layers", LAYERS),
    (r"encoder_layers", 1),
    (r"num_attention_heads|n_heads?|num_heads|decoder_attention_heads|encoder_attention_heads", 4),
    (r"num_key_value_heads|num_kv_heads|multi_query_group_num", 2),
    (r"head_dim|attention_head_dim|kv_channels|d_kv|v_head_dim|qk_nope_head_dim", 8),
    (r"qk_rope_head_dim|rotary_dim|rotary_ndims", 8),
    (r".*lora_rank", 16),
    (r"hidden_size|n_embd|d_model|dim|word_embed_proj_dim|embedding_size|n_embed", 32),
    (r"(decoder_|encoder_)?ffn_dim|.*intermediate_size.*|n_inner|ffn_hidden_size|d_ff|mlp_dim", 32),
    (r"num_local_experts|num_experts|n_routed_experts|moe_num_experts|num_moe_experts", 4),
    (r"num_experts_per_tok|num_experts_per_token|moe_k|moe_top_?k|top_k_experts", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts", 1),
    (r"sliding_window|attention_chunk_size|local_attention|window_size", 24),
]


def tiny_config(family: str) -> PreTrainedConfig:
    """The configuration of a tiny model."""
    cls = CONFIG_MAPPING[family]
    values: dict[str, Any] = {}
    defaults = cls().to_dict()
    for key, value in defaults.items():
        if isinstance(value, bool) or not (isinstance(value, int) or value is None):
            continue
        for pattern, small in _SIZES:
            if re.fullmatch(pattern, key) and (value is not None or key == "head_dim"):
                values[key] = small
                break
    values |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return cls(**(values | OWN.get(family, {})))


OWN: dict[str, dict[str, Any]] = {}


def tiny_model(family: str) -> PreTrainedModel:
    """A random model in evaluation mode, float32."""
    torch.manual_seed(0)
    config = tiny_config(family)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
