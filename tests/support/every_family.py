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
    (r"encoder_layers", LAYERS),
    (r"num_attention_heads|n_heads?|num_heads|decoder_attention_heads|encoder_attention_heads", 4),
    (r"num_key_value_heads|num_kv_heads|multi_query_group_num", 2),
    (r"head_dim|attention_head_dim|kv_channels|d_kv|v_head_dim|qk_nope_head_dim", 8),
    (r"qk_rope_head_dim|rotary_dim|rotary_ndims", 8),
    (r".*lora_rank|mamba_dt_rank|adapter_rank|laurel_rank|router_hidden_size", 16),
    (r"mamba_d_state|state_size|linear_.*_head_dim|linear_head_dim", 8),
    (r"linear_num_.*heads|linear_num_heads", 4),
    (r"hidden_size_per_layer_input|attention_hidden_size", 32),
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
    own = OWN.get(family, {})
    values: dict[str, Any] = {}
    defaults = cls().to_dict()
    layers = defaults.get("num_hidden_layers") or defaults.get("n_layer")
    for key, value in defaults.items():
        if isinstance(value, list) and len(value) == layers:
            values[key] = _few(value)
        if isinstance(value, bool) or not (isinstance(value, int) or value is None):
            continue
        for pattern, small in _SIZES:
            if re.fullmatch(pattern, key) and (value is not None or key == "head_dim"):
                values[key] = small
                break
    values |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return cls(**(values | own))


def _few(kinds: list) -> list:
    """LAYERS entries of a list with one per layer; full attention takes turns with other kinds."""
    others = [kind for kind in kinds if kind != "full_attention"]
    if len(others) == len(kinds) or not others:
        return kinds[:LAYERS]
    return [others[0], "full_attention"] * (LAYERS // 2)


_MLA = {"num_key_value_heads": 4}
_FULL = {"sliding_window": None}
_ALL_FULL = {"layer_types": ["full_attention"] * LAYERS}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
_HYBRID = {"layer_types": ["mamba", "attention"] * (LAYERS // 2)}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["axk1", "axk2", "deepseek_v3", "deepseek_v32"], _MLA),
    **dict.fromkeys(["glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"], _MLA),
    "mistral": _FULL,
    "gemma4_text": {"num_kv_shared_layers": 2},
    "gemma3n_text": {"num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * LAYERS},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2, "n_routed_experts": 4},
    "ministral": _ALL_FULL,
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {**_MAMBA, **_HYBRID},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "nemotron": {"num_key_value_heads": 2},
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "cpmant": {"dim_head": 8, "dim_ff": 32, "prompt_length": 8},
    "xlm": {"emb_dim": 32},
    "xmod": {"languages": ["en"], "default_language": "en"},
    "zamba2": {
        "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
    },
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "dots3_note_text": _MLA,
    "bailing_hybrid": {
        **_MLA,
        "layer_group_size": 2,
        "num_expert_group": 1,
        "num_experts_per_token": 2,
    },
    "longcat_flash": {
        "num_key_value_heads": 4,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "kimi_linear": {"num_key_value_heads": 4},
}


# Families of which no tiny model is built: a word of the reason, or the family of the text model.
UNBUILT: dict[str, tuple[str, str | None]] = {
    "blt": ("patches of bytes", "llama"),
    "dots3_note": ("", "llama"),
    "dots3_note_text": ("many experts", "llama"),
    "emu3": ("", "llama"),
    "fuyu": ("", "persimmon"),
    "gemma3": ("", "gemma3_text"),
    "gemma3n": ("", "gemma3n_text"),
    "gemma4": ("", "gemma4_text"),
    "gemma4_assistant": ("hidden_size_per_layer_input", None),
    "gemma4_unified": ("", "gemma4_unified_text"),
    "gemma4_unified_assistant": ("layer types producing a cache", None),
    "git": ("", "bert"),
    "got_ocr2": ("", "qwen2"),
    "llama4": ("", "llama4_text"),
    "mllama": ("", "llama"),
    "moss_transcribe_diarize": ("", "qwen3"),
    "musicgen": ("", "bart"),
    "musicgen_melody": ("", "bart"),
    "phi4_multimodal": ("", "phi3"),
    "qwen3_5": ("", "qwen3_5_text"),
    "qwen3_5_moe": ("", "qwen3_5_moe_text"),
    "qwen4_exp": ("", "qwen3_5_text"),
    "qwen4_exp_text": ("unsupported operand", None),
    "cohere_compass_text": ("full_attention", None),
    "dbrx": ("rope_theta", None),
    "reformer": ("is_decoder", None),
    "xlstm": ("wrong shape", None),
}


def tiny_model(family: str) -> PreTrainedModel:
    """A random model in evaluation mode, float32."""
    torch.manual_seed(0)
    config = tiny_config(family)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    for parameter in model.parameters():
        # Initial weights are so small that all attention is alike.
        parameter.data.mul_(2) if parameter.ndim > 1 else None
    return model
