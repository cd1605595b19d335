"""Small configurations of many families, for models that are really built."""

from transformers import CONFIG_MAPPING, PreTrainedConfig

_COMMON = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "max_position_embeddings": 2048,
}  # fmt: skip
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_TURNS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 32}
_KEYS = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 2048},
    "mistral": {"sliding_window": 32},
    "gemma3_text": {"head_dim": 16, **_TURNS},
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0,
            "original_max_position_embeddings": 512, "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
        },
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "head_dim": 16, **_ROUTED},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16, "num_experts_per_tok": 2, **_TURNS},
    "llama4_text": {
        "num_local_experts": 4, "num_experts_per_tok": 1, "attention_chunk_size": 32,
        "head_dim": 16, "intermediate_size_mlp": 128, "no_rope_layers": [1, 1, 1, 0],
    },
    "deepseek_v3": {
        "n_routed_experts": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 16, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "num_key_value_heads": 4, "n_shared_experts": 1, **_ROUTED,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "falcon_h1": {
        "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16,
    },
    "qwen3_next": {
        "num_experts": 4, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "head_dim": 16, **_ROUTED,
    },
}  # fmt: skip
FAMILIES = list(_KEYS)
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
# More that carry a state, for what is to be seen of these alone.
_KEYS |= {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {
        **_MAMBA, "layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4,
        "num_experts_per_tok": 2, "shared_intermediate_size": 64,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "olmo_hybrid": {},
    "qwen3_5_text": {
        **_LINEAR, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
    "nemotron_h": {},
}  # fmt: skip


def config_of(family: str, **keys) -> PreTrainedConfig:
    return CONFIG_MAPPING[family](**{**_COMMON, **_KEYS[family], **keys})
