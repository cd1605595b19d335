import pytest
import torch
from support.families import FAMILIES, config_of
from transformers import AutoModelForCausalLM

from needlework.evaluation.meter import cache_bytes
from needlework.planning.shape import Shape
from needlework.planning.trace import _LiveTensors, trace, trace_training

pytestmark = pytest.mark.slow

TOKENS = 150


def _answer(model, tokens):
    """The cache after a prompt and an answer of three tokens, `tokens` in all."""
    result = model.generate(
        torch.ones(1, tokens - 3, dtype=torch.long),
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
    )
    return result["past_key_values" if "past_key_values" in result else "cache_params"]


def test_quantized_cache_has_the_traced_size():
    config = config_of("llama")
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.update(
        cache_implementation="quantized", cache_config={"backend": "fp8"}
    )
    planned = trace(Shape(config).model, TOKENS, "quantized").cache_bytes
    assert planned == cache_bytes(_answer(model, TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_cache_match_the_model(family):
    config = config_of(family)
    shape = Shape(config)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert shape.parameters == model.num_parameters()
    assert shape.weight_bytes() == sum(weight.nbytes for weight in model.parameters())
    assert trace(shape.model, TOKENS).cache_bytes == cache_bytes(_answer(model, TOKENS))


def test_half_precision_halves_weights_and_cache():
    whole, half = Shape(config_of("llama")), Shape(config_of("llama"), "bfloat16")
    assert half.weight_bytes() * 2 == whole.weight_bytes()
    assert trace(half.model, 99).cache_bytes * 2 == trace(whole.model, 99).cache_bytes


def test_active_parameters_count_only_routed_experts():
    shape = Shape(config_of("mixtral"))
    attention = 64 * 64 * 2 + 64 * 32 * 2
    expert, router, norms = 3 * 64 * 128, 64 * 4, 2 * 64
    layer = attention + 2 * expert + router + norms
    assert shape.active_parameters == 4 * layer + 64 + 64 * 256  # the last norm, the output
    whole = 4 * (layer + 2 * expert) + 64 + 2 * 64 * 256
    assert shape.parameters == whole


def test_tied_output_layer_counts_once():
    tied = Shape(config_of("llama", tie_word_embeddings=True))
    apart = Shape(config_of("llama", tie_word_embeddings=False))
    assert apart.parameters - tied.parameters == 64 * 256
    assert apart.active_parameters == tied.active_parameters == tied.parameters


def test_quantization_covers_linear_layers_only():
    shape = Shape(config_of("llama"), "bfloat16")
    linear = 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    plain = 2 * (shape.parameters - linear)
    assert shape.weight_bytes("int8") == plain + linear
    assert shape.weight_bytes("nf4") == plain + linear * 9 // 16
    # Mixtral keeps its experts in one tensor, which stays as it is.
    experts = Shape(config_of("mixtral"))
    assert experts.quantizable_parameters == 4 * (64 * 64 * 2 + 64 * 32 * 2)


def test_layers_have_their_windows_and_dimensions():
    layers = Shape(config_of("gemma3_text")).layers
    assert [(x.window, x.is_full) for x in layers] == [(32, False), (None, True)] * 2
    layers = Shape(config_of("falcon_h1")).layers
    assert all(x.is_full and x.kv_heads == 2 for x in layers)
    assert all(x.kv_heads == 0 for x in Shape(config_of("mamba2")).layers)
    latent = Shape(config_of("deepseek_v3")).layers[0]
    assert (latent.key_dim, latent.value_dim) == (16, 16)


def test_peak_counts_live_tensors_without_weights():
    shape = Shape(config_of("llama", num_hidden_layers=1))
    n, h, wide, item = 400, 64, 128, 4
    result = trace(shape.model, n + 2)
    # The feed-forward part holds its input, the residual, and at most three wide tensors.
    held = result.cache_bytes + item * n * (2 * h + 3 * wide)
    assert 0.7 * held < result.peak_bytes < 1.4 * held
    assert result.peak_bytes < shape.weight_bytes() + held


def test_unfused_attention_takes_quadratic_memory():
    shape = Shape(config_of("gpt_oss"))
    short, long = (trace(shape.model, n).peak_bytes for n in (1000, 2000))
    assert long > 3.5 * short
    assert long > 4 * 2000**2 * 4  # a score a head
    fused = Shape(config_of("llama"))
    short, long = (trace(fused.model, n).peak_bytes for n in (1000, 2000))
    assert long < 2.1 * short


def test_masks_depend_on_the_kernel():
    # Its chunked layers have a mask of n x n; gpt_oss computes scores of n x n where it has to.
    chunked, n = Shape(config_of("llama4_text")).model, 4000
    fused, flex = (trace(chunked, n, kernel=name) for name in ("sdpa", "flex_attention"))
    assert fused.peak_bytes - flex.peak_bytes > 0.9 * n**2
    assert flex.cache_bytes == fused.cache_bytes
    eager = Shape(config_of("gpt_oss")).model
    own, other = (trace(eager, n, kernel=name) for name in (None, "flash_attention_3"))
    assert own.peak_bytes - other.peak_bytes > 4 * 4 * n**2
    assert trace(eager, n) == own


def test_unequal_key_and_value_widths_are_not_fused_on_a_cpu():
    n, heads = 1000, 4
    latent = Shape(config_of("deepseek_v3", v_head_dim=24)).model
    cpu, gpu = (trace(latent, n, gpu=there) for there in (False, True))
    assert 2 * 4 * heads * (n - 2) ** 2 == cpu.attention_bytes - gpu.attention_bytes
    assert (cpu.cache_bytes, cpu.prefill_flops) == (gpu.cache_bytes, gpu.prefill_flops)
    plain = Shape(config_of("llama")).model
    assert trace(plain, n, gpu=False) == trace(plain, n)


@pytest.mark.parametrize("family", ["llama", "llama4_text", "gpt_oss"])
@pytest.mark.parametrize(("tokens", "chunk"), [(1202, 100), (703, 300), (350, 340)])
def test_chunked_prefill_has_the_traced_peak(family, tokens, chunk):
    config = config_of(family)
    model, shape = AutoModelForCausalLM.from_config(config).eval(), Shape(config)
    model.generation_config.prefill_chunk_size = chunk
    measured = _LiveTensors(model)
    with measured:
        held = _answer(model, tokens)
    planned, whole = (trace(shape.model, tokens, chunk=n) for n in (chunk, None))
    assert planned.peak_bytes == pytest.approx(measured.peak, rel=0.015)
    assert planned.cache_bytes == whole.cache_bytes == cache_bytes(held)
    assert planned.prefill_flops == whole.prefill_flops
    assert trace(shape.model, tokens, chunk=tokens) == whole


def test_training_memory_grows_with_layers_and_rows():
    few, many = (Shape(config_of("llama", num_hidden_layers=n)).model for n in (2, 8))
    assert trace_training(many, 2, 100) > 2.5 * trace_training(few, 2, 100)
    assert trace_training(few, 4, 100) == pytest.approx(2 * trace_training(few, 2, 100), rel=0.05)


def test_models_that_read_values_cannot_be_traced():
    class Reader(torch.nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    model = Shape(config_of("llama")).model
    model.model.norm = Reader()
    with pytest.raises(ValueError, match=r"^llama: cannot be traced without weights \("):
        trace(model, 20)
