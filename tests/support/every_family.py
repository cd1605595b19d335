"""A tiny random model of every family with a causal language model in transformers.

Sizes of a family's default configuration are replaced by small ones, chosen by the names of its
keys; families with sizes that must fit each other have entries of their own.
"""

import re
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
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
    (r"encoder_layers", LAYERS),
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
    return _shrink(CONFIG_MAPPING[family], OWN.get(family, {}))


def _shrink(cls: type[PreTrainedConfig], own: dict[str, Any]) -> PreTrainedConfig:
    values: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    for key, value in cls().to_dict().items():
        if key == "text_config" and "text_config" in cls.sub_configs:
            text = CONFIG_MAPPING[value["model_type"]]
            values[key] = _shrink(text, OWN.get(text.model_type, {})).to_dict()
        if isinstance(value, bool) or not (isinstance(value, int) or value is None):
            continue
        for pattern, small in _SIZES:
            if re.fullmatch(pattern, key) and (value is not None or key == "head_dim"):
                values[key] = small
                break
    return cls(**(values | own))


_LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "cpmant": {"dim_ff": 32},
    "ctrl": {"dff": 32},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
    },
    "exaone_moe": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "ministral": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "mistral": {"sliding_window": None},
    "longcat_flash": {"ffn_hidden_size": 32, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "reformer": {"is_decoder": True},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
}
for _encoder in (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
    "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
):  # fmt: skip
    OWN[_encoder] = {"is_decoder": True}
for _latent in (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
    "longcat_flash", "minicpm3", "youtu",
):  # fmt: skip
    OWN.setdefault(_latent, {})["num_key_value_heads"] = 4
OWN["deepseek_v2"] |= {"topk_method": "greedy", "num_experts_per_tok": 2}
MOST_PARAMETERS = 3_000_000


def tiny_model(family: str) -> PreTrainedModel:
    """A random model in evaluation mode, float32.

    Raises:
        ValueError: the family's configuration does not make a tiny model.
    """
    config = tiny_config(family)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"{family}: has {parameters} parameters; add small sizes to OWN")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
