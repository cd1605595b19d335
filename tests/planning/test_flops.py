import pytest
import torch
from pydantic import TypeAdapter
from support.families import config_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from needlework.attention.base import computation_of
from needlework.attention.layers import LayerShape, count_causal_pairs
from needlework.config.attention.registry import AnyAttention
from needlework.config.devices import devices
from needlework.config.opening import Opening
from needlework.planning.cost import Model
from needlework.planning.flops import attention_flops, pair_flops
from needlework.planning.shape import Shape

pytestmark = pytest.mark.slow


def _method(**parameters):
    return computation_of(TypeAdapter(AnyAttention).validate_python(parameters))


def _layer(kind, window):
    return LayerShape(kind, window, 4, 2, 16, 16, window is None, 4)


@pytest.mark.parametrize("tokens", [1, 7, 31, 32, 33, 100])
def test_pairs_match_a_mask(tokens):
    i, j = torch.meshgrid(torch.arange(tokens), torch.arange(tokens), indexing="ij")
    causal = j <= i
    assert count_causal_pairs(tokens) == causal.sum()
    assert count_causal_pairs(tokens, 32) == (causal & (i - j < 32)).sum()
    chunked = _layer("chunked_attention", 32).pairs(tokens)
    assert chunked == (causal & (i // 32 == j // 32)).sum()
    assert _layer("sliding_attention", 32).pairs(tokens) == count_causal_pairs(tokens, 32)


@pytest.mark.parametrize("family", ["llama", "llama4_text", "gpt2"])
def test_operations_match_torch_flop_counter(family):
    tokens, cpu = 64, devices()["cpu"]
    shape, n = Shape(config_of(family)), tokens + 2  # the last two are decoded
    model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation="eager").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.ones(1, tokens, dtype=torch.long), logits_to_keep=1)
    eager = Model(shape, opening=Opening(attn_implementation="eager")).cost(None, n, cpu)
    assert eager.flops == counter.get_total_flops()
    fused = Model(shape).cost(None, n, cpu)
    kept = fused.attention_flops - pair_flops(shape) * tokens**2
    assert fused.flops == eager.flops + kept


def test_a_system_replaces_unfused_scores():
    shape, cpu = Shape(config_of("llama")), devices()["cpu"]
    system = _method(type="random", density=0.2, dense_layers=0)
    eager = Model(shape, opening=Opening(attn_implementation="eager"))
    assert eager.cost(system, 700, cpu).flops == Model(shape).cost(system, 700, cpu).flops


def test_operations_count_only_routed_experts():
    shape, tokens = Shape(config_of("mixtral")), 64
    cost = Model(shape).cost(None, tokens + 2, devices()["cpu"])
    # One token alone meets the output layer; norms and embeddings are no products.
    head, norms = 64 * 256, 9 * 64
    expected = 2 * tokens * (shape.active_parameters - head - norms) + 2 * head
    assert cost.flops == expected + cost.attention_flops


def test_attention_flops_are_proportional_to_causal_pairs():
    shape, tokens = Shape(config_of("llama")), 64
    pair = 4 * 4 * 2 * (16 + 16)  # layers, heads, q k^T and weights v
    assert pair_flops(shape) == pair
    assert attention_flops(shape, None, tokens) == (
        pair * count_causal_pairs(tokens),
        pair * tokens,
    )


def test_decode_reads_all_experts_if_the_family_computes_all():
    slow = devices()["h100-80gb"].model_copy(update={"bytes_per_second": 1e9})
    shape = Shape(config_of("llama4_text"), "bfloat16")
    cost = Model(shape).cost(None, 100, slow)
    assert shape.active_parameters < 0.9 * shape.parameters
    table = shape.model.get_input_embeddings().weight.numel()
    read = 2 * (shape.parameters - table) + cost.cache_bytes
    assert cost.decode_seconds_per_token * 0.4 * 1e9 == pytest.approx(read, rel=0.03)


def test_window_and_infini_cost_the_same_for_every_token():
    shape = Shape(config_of("llama"))
    for system in (
        _method(type="window", recent_tokens=64, sink_tokens=4, dense_layers=0),
        _method(type="infini", segment_length=64),
    ):
        (short, one), (long, other) = (attention_flops(shape, system, n) for n in (4096, 8192))
        assert long == pytest.approx(2 * short, rel=0.03)
        assert one == pytest.approx(other, rel=0.03)
    short, long = (attention_flops(shape, None, n)[0] for n in (4096, 8192))
    assert long == pytest.approx(4 * short, rel=0.01)


def test_densities_of_counts_shares_and_thresholds():
    few = _method(type="random", top_k_blocks=2, block_size=10)
    # Rows of 1 to 5 blocks keep 1, 2, 2, 2, 2 of 15.
    assert few.prefill_density(50) == pytest.approx(9 / 15)
    assert few.decode_density(50) == pytest.approx(2 / 5)
    share = _method(type="sketchwalk", preset="official")
    assert share.decode_density(64 * 80) == pytest.approx(11 / 80)
    last = _method(type="seer", gates="x", nz_ratio=0.19, token_budget=128)
    assert last.decode_density(64 * 100) == pytest.approx(3 / 100)
    assert 0.1 < last.prefill_density(64 * 100) < 0.3
    unknown = _method(type="seer", gates="x", threshold=0.1, decode_threshold=0.1)
    assert unknown.prefill_density(5000) == unknown.decode_density(5000) == 1
    dense_decode = _method(type="random", top_k_blocks=2, stages="prefill")
    assert dense_decode.decode_density(5000) == 1 > dense_decode.prefill_density(5000)


def test_prefill_time_follows_operations_and_decode_time_bytes():
    gpu = devices()["h100-80gb"].model_copy(update={"bytes_per_second": 1e11})
    shape = Shape(config_of("llama", hidden_size=2048, intermediate_size=8192), "bfloat16")
    cost = Model(shape).cost(None, 8192, gpu)
    assert cost.prefill_seconds == pytest.approx(cost.flops / (0.4 * 9.89e14))
    read = cost.weight_bytes * shape.active_parameters / shape.parameters + cost.cache_bytes
    assert cost.decode_seconds_per_token == pytest.approx(read / (0.4 * 1e11))
    sparse = Model(shape).cost(_method(type="random", density=0.1, dense_layers=0), 8192, gpu)
    assert sparse.decode_seconds_per_token < cost.decode_seconds_per_token


class _Calls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text", "falcon_h1"])
def test_small_models_are_limited_by_the_start_of_operations(family):
    shape, gpu = Shape(config_of(family)), devices()["h100-80gb"]
    model = AutoModelForCausalLM.from_config(shape.model.config).eval()
    ids = torch.zeros(1, 99, dtype=torch.long)
    with torch.no_grad(), _Calls() as prefill:
        read = model(input_ids=ids[:, 1:], use_cache=True)
    with torch.no_grad(), _Calls() as token:
        model(input_ids=ids[:, :1], use_cache=True, past_key_values=read.past_key_values)
    cost = Model(shape).cost(None, 100, gpu)
    assert cost.decode_seconds_per_token == pytest.approx(5e-6 * token.count, rel=0.1)
    assert cost.prefill_seconds == pytest.approx(5e-6 * prefill.count, rel=0.1)
    chunked = Model(shape, opening=Opening(prefill_chunk_tokens=20)).cost(None, 100, gpu)
    assert chunked.prefill_seconds == pytest.approx(5 * cost.prefill_seconds)
    shared = Model(shape, opening=Opening(tp=2)).cost(None, 100, gpu)
    assert shared.decode_seconds_per_token == cost.decode_seconds_per_token
