"""Untrained models of a few thousand parameters, one of each family, and how tests run them."""

import torch
import transformers as configs
from transformers import AutoModelForCausalLM, DynamicCache

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
# A config of each family, where it differs from SMALL, and the layers that are replaced after the
# first. Others slide, are chunked or linear.
FAMILIES = {
    "llama": (configs.LlamaConfig, {}, {1, 2, 3}),
    "qwen2": (configs.Qwen2Config, {}, {1, 2, 3}),
    "qwen3": (configs.Qwen3Config, {}, {1, 2, 3}),
    "qwen3-moe": (configs.Qwen3MoeConfig, EXPERTS, {1, 2, 3}),
    "qwen3-next": (
        configs.Qwen3NextConfig,
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        {3},
    ),
    "mistral": (configs.MistralConfig, {"sliding_window": None}, {1, 2, 3}),
    "mixtral": (configs.MixtralConfig, {**LOCAL_EXPERTS, "sliding_window": None}, {1, 2, 3}),
    "phi3": (configs.Phi3Config, {"sliding_window": None}, {1, 2, 3}),
    "granite": (configs.GraniteConfig, {}, {1, 2, 3}),
    "glm4": (configs.Glm4Config, {}, {1, 2, 3}),
    "smollm3": (configs.SmolLM3Config, {}, {1, 2, 3}),
    # Keys of 16 and values of 8, from latents.
    "deepseek-v3": (
        configs.DeepseekV3Config,
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
        {1, 2, 3},
    ),
    "falcon-h1": (
        configs.FalconH1Config,
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
        {1, 2, 3},
    ),
    "gemma2": (configs.Gemma2Config, {"sliding_window": 24, "query_pre_attn_scalar": 8}, {1, 3}),
    "gemma3": (
        configs.Gemma3TextConfig,
        {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2},
        {1, 3},
    ),
    "llama4": (
        configs.Llama4TextConfig,
        {**LOCAL_EXPERTS, "intermediate_size_mlp": 32, "attention_chunk_size": 24},
        {3},
    ),
    "gpt-oss": (configs.GptOssConfig, {**LOCAL_EXPERTS, "sliding_window": 24}, {1, 3}),
    "olmo3": (configs.Olmo3Config, {"sliding_window": 24}, {3}),
    "diffllama": (configs.DiffLlamaConfig, {}, {1, 2, 3}),
    "opt": (configs.OPTConfig, {"word_embed_proj_dim": 32, "ffn_dim": 32}, {1, 2, 3}),
    # Do not pass arguments on to their attention layers.
    "stablelm": (configs.StableLmConfig, {}, {1, 2, 3}),
    "nemotron": (configs.NemotronConfig, {}, {1, 2, 3}),
    "cohere2": (configs.Cohere2Config, {"sliding_window": 24}, {3}),
}


def tiny(family="llama", differing=None):
    torch.manual_seed(0)
    config, own, _ = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(config(**SMALL | own | (differing or {}))).eval()
    for parameter in model.parameters():
        # Initial weights are so small that all attention is alike.
        parameter.data.mul_(4) if parameter.ndim > 1 else None
    return model


def prompts(lengths, seed=0):
    """Token ids and mask [rows, longest], padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (len(lengths), max(lengths)), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : max(lengths) - length] = 0
        mask[row, : max(lengths) - length] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, inputs, new=12):
    out = model.generate(
        **inputs,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


@torch.inference_mode()
def run(model, ids, forwards, mask=None, cache=None):
    """Logits of `ids` given in forwards of so many tokens, after what the cache holds."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    done, start, logits = cache.get_seq_length(), 0, []
    mask = torch.ones(len(ids), done + ids.shape[1], dtype=torch.long) if mask is None else mask
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    for new in forwards:
        end = start + new
        out = model(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, : done + end],
            position_ids=position[:, done + start : done + end],
            past_key_values=cache,
        )
        logits.append(out.logits)
        start = end
    return torch.cat(logits, 1)
