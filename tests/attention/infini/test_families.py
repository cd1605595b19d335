"""Infini-attention on decoder families: conversion, saving and loading."""

import subprocess
import sys

import pytest
import torch
from support.infini_families import (
    FAMILIES,
    MIXED,
    TOKENS,
    configuration,
    converted,
    logits,
    stock,
    tokens,
)
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
)

from needlework.config.attention.infini import Infini
from needlework.models.convert import convert

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_segment_matches_the_stock_model(model_type):
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
def test_cache_does_not_change_generation(model_type):
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
def test_saved_model_reopens_unchanged(model_type, tmp_path):
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
    # Covers what is not in the state, such as angles; experts round by memory layout.
    ids, mask = tokens()
    torch.testing.assert_close(logits(opened, ids, mask), logits(model, ids, mask))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_dense_weights_opened_as_infini_have_initialized_gates(model_type, tmp_path):
    """Uninitialized memory is NaN in this test."""
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
def test_gates_and_state_stay_float32_in_half_precision_models(dtype, tmp_path):
    converted("qwen3", segment_length=5).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == dtype
    assert {gate.balance_factors.dtype for gate in model.gates} == {torch.float32}
    state = model(tokens()[0]).past_key_values.layers[0]
    assert state.keys.dtype == dtype
    assert state.memory.dtype == state.norm.dtype == torch.float32


def test_base_model_opens_with_auto_model(tmp_path):
    model = converted("gemma3_text", segment_length=5)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base).__name__ == "InfiniGemma3TextModel"
    ids, _ = tokens()
    with torch.no_grad():
        hidden = base(ids, use_cache=False).last_hidden_state
        expected = model.model(ids, use_cache=False).last_hidden_state
    assert torch.equal(hidden, expected)


def test_importing_the_method_lets_auto_classes_open_any_family(tmp_path):
    """In a new interpreter; classes are defined when their model types are looked up."""
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
    assert not done.stdout.strip(), "an unused family was imported"


def test_unknown_model_types_stay_unknown(tmp_path):
    for model_type in ("infini_nothing", "infini_vit", "nothing"):
        assert model_type not in CONFIG_MAPPING
    (tmp_path / "config.json").write_text('{"model_type": "infini_nothing"}')
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        AutoConfig.from_pretrained(tmp_path)


def test_resized_vocabulary_and_tied_weights_survive_saving(tmp_path):
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
def test_other_rope_types_match_the_family(model_type, rope):
    torch.manual_seed(0)
    config = configuration(model_type, rope_parameters=rope, sliding_window=None)
    base = AutoModelForCausalLM.from_config(config).eval()
    model = convert(base, Infini(segment_length=TOKENS))
    ids, mask = tokens()
    expected = logits(base, ids, mask)
    assert (logits(model, ids, mask) - expected).abs().max() < 1e-5 * expected.std()


def test_cache_is_kept_when_longrope_would_change_its_factors():
    """Phi3 drops its cache once the text exceeds the short factors; segments never exceed them."""
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


def test_sliding_layers_keep_only_their_window():
    """The cache has the same size at any length."""
    model = converted("gemma3_text", segment_length=5)

    def cache_bytes(length):
        cache = model(tokens(1, length)[0], use_cache=True).past_key_values
        states = [x for layer in cache.layers for x in vars(layer).values()]
        kept = [x for x in states if isinstance(x, torch.Tensor)]
        return sum(x.numel() * x.element_size() for x in kept)

    assert len({cache_bytes(length) for length in (6, 7, 30, 101)}) == 1


def test_later_tokens_do_not_affect_earlier_ones_with_sliding_layers():
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
