"""Infini-attention on the families of decoders: what is right is converted, the rest is refused."""

import functools
import subprocess
import sys

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaModel,
    MambaConfig,
)

from needlework.attention.infini import rope
from needlework.config.attention import Infini
from needlework.models.convert import convert

TOKENS = 24
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Settings beside the common ones, the layers that are converted, and those of them without RoPE.
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
    # Norms, biases and sinks start at 1 or 0, where mistakes about them cannot be seen.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def converted(model_type, **parameters):
    """With gates drawn anew at each head and layer."""
    torch.manual_seed(1)
    return convert(stock(model_type), Infini(balance_init_type="randn", **parameters))


def tokens(rows=2, columns=TOKENS):
    """Ids and padding on the left of the last row."""
    ids = torch.randint(1, 40, (rows, columns), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, :5] = 0
    return ids, mask


def logits(model, ids, mask):
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return out[mask.bool()]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_segment_is_the_stock_model(model_type):
    _, layers, unrotated = FAMILIES[model_type]
    ids, mask = tokens()
    model = converted(model_type, segment_length=TOKENS)
    assert [gate.layer for gate in model.gates] == layers
    assert model.config.infini_unrotated_layers == unrotated
    expected = logits(stock(model_type), ids, mask)
    got = logits(model, ids, mask)
    assert (got - expected).abs().max() < 1e-5 * expected.std()
    shorter = logits(converted(model_type, segment_length=5), ids, mask)
    assert (shorter - expected).abs().max() > 0.01 * expected.std()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_generation_is_the_same_with_and_without_cache(model_type):
    ids, mask = tokens()
    model = converted(model_type, segment_length=5, update="delta", segment_alignment="end")
    inputs = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    expected = model.generate(**inputs, use_cache=False)
    assert torch.equal(model.generate(**inputs), expected)
    assert torch.equal(model.generate(**inputs, prefill_chunk_size=7), expected)
    if model_type in MIXED:
        beams = {**inputs, "num_beams": 3}
        assert torch.equal(model.generate(**beams), model.generate(**beams, use_cache=False))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_saved_and_opened_again_it_is_the_same(model_type, tmp_path):
    model = converted(model_type, segment_length=5)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(opened) is type(model)
    assert opened.config.model_type == f"infini_{model_type}"
    assert opened.config.needlework_attention == "infini"
    assert Infini(**opened.config.infini) == Infini(**model.config.infini)
    assert opened.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value), name
    # What is not in the state, angles say. Experts round by where their weights lie in memory.
    ids, mask = tokens()
    torch.testing.assert_close(logits(opened, ids, mask), logits(model, ids, mask))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_dense_weights_opened_as_infini_have_initialised_gates(model_type, tmp_path):
    """Memory that nobody initialises is NaN here."""
    constant = Infini(balance_init_type="constant", balance_init_value=-2.0, segment_length=TOKENS)
    config = convert(stock(model_type), constant).config
    stock(model_type).save_pretrained(tmp_path)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        assert torch.empty(1).isnan().all()
        model_class = type(converted(model_type))
        model, loading = model_class.from_pretrained(
            tmp_path, config=config, output_loading_info=True
        )
    finally:
        torch.use_deterministic_algorithms(False)
    missing = sorted(loading["missing_keys"])
    assert len(missing) == len(model.gates)
    assert all(name.endswith("gate.balance_factors") for name in missing)
    for gate in model.gates:
        assert gate.balance_factors.dtype == torch.float32
        assert gate.balance_factors.eq(-2).all()
    ids, mask = tokens()
    expected = logits(stock(model_type), ids, mask)
    assert (logits(model, ids, mask) - expected).abs().max() < 1e-5 * expected.std()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_opened_in_half_precision_gates_and_state_stay_float32(dtype, tmp_path):
    converted("qwen3", segment_length=5).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == dtype
    assert {gate.balance_factors.dtype for gate in model.gates} == {torch.float32}
    state = model(tokens()[0]).past_key_values.layers[0]
    assert state.keys.dtype == dtype
    assert state.memory.dtype == state.norm.dtype == torch.float32


def test_the_base_model_opens_by_auto_model(tmp_path):
    model = converted("gemma3_text", segment_length=5)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base).__name__ == "InfiniGemma3TextModel"
    ids, _ = tokens()
    with torch.no_grad():
        hidden = base(ids, use_cache=False).last_hidden_state
        expected = model.model(ids, use_cache=False).last_hidden_state
    assert torch.equal(hidden, expected)


def test_a_fresh_interpreter_opens_any_family(tmp_path):
    """Nothing but the import: classes are made as their model types are asked for."""
    ids, mask = tokens()
    for model_type in ("mixtral", "glm4", "gpt_oss"):
        model = converted(model_type, segment_length=5)
        model.save_pretrained(tmp_path / model_type)
        torch.save(logits(model, ids, mask), tmp_path / model_type / "logits.pt")
    script = """
import sys, torch
import needlework.attention.methods.infini
from transformers import AutoModelForCausalLM
ids, mask = (torch.tensor(eval(x)) for x in sys.argv[2:])
for model_type in ("mixtral", "glm4", "gpt_oss"):
    folder = f"{sys.argv[1]}/{model_type}"
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    with torch.no_grad():
        got = model(ids, **inputs, use_cache=False).logits[mask.bool()]
    torch.testing.assert_close(got, torch.load(f"{folder}/logits.pt", weights_only=True))
print(*sorted(name for name in sys.modules if "transformers.models.cohere" in name))
"""
    arguments = [str(tmp_path), str(ids.tolist()), str(mask.tolist())]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), "a family that nobody asked for was imported"


def test_model_types_that_do_not_exist_stay_unknown(tmp_path):
    for model_type in ("infini_nothing", "infini_vit", "nothing"):
        assert model_type not in CONFIG_MAPPING
    (tmp_path / "config.json").write_text('{"model_type": "infini_nothing"}')
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        AutoConfig.from_pretrained(tmp_path)


def test_vocabularies_can_be_resized_and_weights_tied(tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(configuration("qwen3", tie_word_embeddings=True))
    model = convert(base.eval(), Infini(segment_length=5))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight is not base.lm_head.weight
    model.resize_token_embeddings(50)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    ids, mask = tokens()
    assert logits(opened, ids, mask).shape[-1] == 50
    assert torch.equal(logits(opened, ids, mask), logits(model, ids, mask))


ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("model_type", "rope"),
    [
        ("llama", {"rope_type": "yarn", **ROPE}),
        ("llama", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
        ("llama", {"rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4, **ROPE}),
        (
            "phi3",
            {
                "rope_type": "longrope",
                "short_factor": [1.0, 1.2, 1.5, 2.0],
                "long_factor": [2.0, 3.0, 5.0, 8.0],
                **ROPE,
            },
        ),
    ],
)
def test_other_forms_of_rope_turn_the_local_part_as_in_the_family(model_type, rope):
    torch.manual_seed(0)
    config = configuration(model_type, rope_parameters=rope, sliding_window=None)
    base = AutoModelForCausalLM.from_config(config).eval()
    model = convert(base, Infini(segment_length=TOKENS))
    ids, mask = tokens()
    expected = logits(base, ids, mask)
    assert (logits(model, ids, mask) - expected).abs().max() < 1e-5 * expected.std()


def test_a_cache_is_kept_where_longrope_would_change_its_factors():
    """Phi3 drops its cache when the text outgrows the short factors; segments never do."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        **ROPE,
        "original_max_position_embeddings": 28,
    }
    torch.manual_seed(0)
    config = configuration("phi3", rope_parameters=rope, sliding_window=None)
    config.original_max_position_embeddings = 28
    base = AutoModelForCausalLM.from_config(config).eval()
    model = convert(base, Infini(segment_length=8, segment_alignment="end"))
    ids, mask = tokens()
    widths = []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    inputs = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    cached = model.generate(**inputs)
    assert widths == [TOKENS] + [1] * 11
    assert torch.equal(cached, model.generate(**inputs, use_cache=False))


def test_layers_that_slide_keep_their_window():
    """Their keys are as many as the window at any length; memory is as large as ever."""
    model = converted("gemma3_text", segment_length=5)

    def cache_bytes(length):
        cache = model(tokens(1, length)[0], use_cache=True).past_key_values
        states = [x for layer in cache.layers for x in vars(layer).values()]
        kept = [x for x in states if isinstance(x, torch.Tensor)]
        return sum(x.numel() * x.element_size() for x in kept)

    assert len({cache_bytes(length) for length in (6, 7, 30, 101)}) == 1


def test_nothing_leaks_from_the_future_where_some_layers_slide():
    model = converted("gemma3_text", segment_length=5, update="delta")
    ids, mask = tokens(1)
    mask[:] = 1
    before = logits(model, ids, mask)
    for changed in range(1, TOKENS):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 7) % 39 + 1
        after = logits(model, other, mask)
        assert torch.equal(before[:changed], after[:changed])
        assert not torch.equal(before[changed:], after[changed:])


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
            "layer 0 does not turn its queries and keys by RoPE alone",
        ),
        (
            lambda: configuration("hunyuan_v1_dense"),
            "layer 0 does not turn its queries and keys by RoPE alone",
        ),
        (lambda: configuration("diffllama"), "layer 0 calls attention 2 times"),
        (lambda: configuration("stablelm"), "its layers hand no arguments down"),
        (lambda: CONFIG_MAPPING["gpt2"](n_embd=16, n_layer=1, n_head=2), "it does not use RoPE"),
    ],
    ids=["window", "mamba", "hybrid", "chunked", "latents", "norm", "twice", "deaf", "learned"],
)
def test_families_of_other_attention_are_refused(config, reason):
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


def test_angles_that_come_another_way_are_not_taken_for_layers_without_rope(monkeypatch):
    def reach_nothing(attention):
        return attention.register_forward_pre_hook(lambda *_: None)

    monkeypatch.setattr(rope, "take_off", reach_nothing)
    with pytest.raises(ValueError, match="layer 0 does not turn its queries and keys by RoPE"):
        convert(stock("llama"), Infini())


def test_models_that_are_no_plain_decoders_are_refused():
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
    whole = Gemma3ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="model_type gemma3 cannot be converted"):
        convert(whole, Infini())
