"""Models that cannot be converted to Infini-attention are refused with the reason."""

import pytest
import torch
from support.infini_families import (
    configuration,
    converted,
    stock,
)
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaModel,
    MambaConfig,
)

from needlework.attention.infini import rope
from needlework.config.attention.infini import Infini
from needlework.models.convert import convert

LATENTS = {
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16},
    **{"q_lora_rank": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: configuration("mistral"), "every layer has a sliding window"),
        (
            lambda: MambaConfig(hidden_size=16, num_hidden_layers=2),
            "it has linear_attention layers",
        ),
        (lambda: configuration("qwen3_next", num_experts=4), "it has linear_attention layers"),
        (
            lambda: configuration("llama4_text", num_local_experts=2),
            "it has chunked_attention layers",
        ),
        (
            lambda: configuration("deepseek_v3", **LATENTS),
            "layer 0 changes its queries and keys by more than RoPE",
        ),
        (
            lambda: configuration("hunyuan_v1_dense"),
            "layer 0 changes its queries and keys by more than RoPE",
        ),
        (lambda: configuration("diffllama"), "layer 0 calls attention 2 times"),
        (lambda: configuration("stablelm"), "its layers do not pass arguments on"),
        (lambda: CONFIG_MAPPING["gpt2"](n_embd=16, n_layer=1, n_head=2), "it does not use RoPE"),
    ],
    ids=["window", "mamba", "hybrid", "chunked", "latent", "norm", "twice", "no-kwargs", "learned"],
)
def test_families_with_other_attention_are_refused(config, reason):
    config = config()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    expected = f"infini: model_type {config.model_type} cannot be converted: .*{reason}"
    with pytest.raises(ValueError, match=expected) as caught:
        convert(model, Infini(segment_length=8))
    assert "\n" not in str(caught.value)
    assert config.model_type == type(model).config_class.model_type


def test_unreachable_angles_are_not_mistaken_for_layers_without_rope(monkeypatch):
    def without_effect(attention):
        return attention.register_forward_pre_hook(lambda *_: None)

    monkeypatch.setattr(rope, "remove_rope", without_effect)
    with pytest.raises(ValueError, match="layer 0 changes its queries and keys by more than"):
        convert(stock("llama"), Infini())


def test_models_other_than_plain_decoders_are_refused():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertLMHeadModel(
        BertConfig(**small, intermediate_size=16, vocab_size=40, is_decoder=True)
    )
    with pytest.raises(
        ValueError, match="model_type bert cannot be converted: it does not use RoPE"
    ):
        convert(bert, Infini())
    with pytest.raises(ValueError, match="cannot be converted: it has Infini-attention already"):
        convert(converted("llama"), Infini())
    headless = LlamaModel(configuration("llama"))
    with pytest.raises(ValueError, match="model_type llama cannot be converted as LlamaModel"):
        convert(headless, Infini())
    vision = {**small, "intermediate_size": 16, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=configuration("gemma3_text").to_dict(), vision_config=vision)
    multimodal = Gemma3ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="model_type gemma3 cannot be converted"):
        convert(multimodal, Infini())
