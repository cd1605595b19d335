import pytest
import torch
from pydantic import TypeAdapter
from support.families import config_of
from transformers import AutoModelForCausalLM

from needlework.attention.apply import apply
from needlework.attention.base import computation_of
from needlework.attention.seer.gates import Gates
from needlework.config.attention.registry import AnyAttention
from needlework.config.devices import devices
from needlework.config.opening import Opening
from needlework.evaluation.meter import cache_bytes
from needlework.models.convert import convert
from needlework.planning.cost import Model
from needlework.planning.memory import state_bytes, workspace_bytes
from needlework.planning.shape import Shape

pytestmark = pytest.mark.slow

SYSTEMS = {
    "walk": {"type": "sketchwalk", "top_k_blocks": 4, "sketch_dim": 8},
    "sum": {"type": "sketchwalk", "heads": "sum", "density": 0.3},
    "official": {"type": "sketchwalk", "preset": "official"},
    "box": {"type": "sketchwalk", "preset": "box", "density": 0.3},
    "kept": {"type": "sketchwalk", "walk_memory": "sparse", "top_k_blocks": 3},
    "xattention": {"type": "xattention", "density": 0.3, "stride": 4},
    "dense decode": {"type": "xattention", "density": 0.3, "stride": 4, "stages": "prefill"},
    "random": {"type": "random", "density": 0.3},
    "oracle": {"type": "oracle", "top_k_blocks": 5},
    "window": {"type": "window", "recent_tokens": 40},
    "seer": {"type": "seer", "gates": "", "density": 0.3},
    "narrow seer": {"type": "seer", "gates": "", "density": 0.3},
    "seer prefill": {"type": "seer", "gates": "", "density": 0.3, "stages": "prefill"},
}


def _attention(parameters):
    return TypeAdapter(AnyAttention).validate_python(parameters)


def _method(**parameters):
    return computation_of(_attention(parameters))


def _answer(model, tokens):
    result = model.generate(
        torch.arange(tokens - 3)[None] % 250 + 3,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
    )
    return result.past_key_values


@pytest.mark.parametrize("name", SYSTEMS)
def test_planned_cache_and_density_match_a_run(name, tmp_path):
    torch.manual_seed(0)
    config, tokens = config_of("llama"), 203
    model = AutoModelForCausalLM.from_config(config).eval()
    given = {"block_size": 16, "dense_layers": 1, **SYSTEMS[name]}
    if given["type"] == "seer":
        wide = None if name == "seer" else 8
        gates = Gates.new(model, block_size=16, gate_dim=wide)
        gates.save(tmp_path)
        given["gates"] = str(tmp_path)
    system = _attention(given)
    with apply(model, system) as handle:
        measured = cache_bytes(_answer(model, tokens))
        density = handle.density().sparse_layers_prefill
    method = computation_of(system)
    planned = Model(Shape(config)).cost(method, tokens, devices()["cpu"])
    assert planned.cache_bytes == pytest.approx(measured, rel=0.01)
    if name not in ("official",):
        assert method.prefill_density(tokens - 3) == pytest.approx(density, rel=0.15)
    assert planned.activation_bytes > 0


@pytest.mark.parametrize("tokens", [100, 1000])
def test_infini_cache_does_not_grow_with_the_prompt(tokens):
    config = config_of("llama")
    system = _attention({"type": "infini", "segment_length": 32})
    model = convert(AutoModelForCausalLM.from_config(config).eval(), system)
    measured = cache_bytes(_answer(model, tokens))
    planned = Model(Shape(config), computation_of(system)).cost(None, tokens, devices()["cpu"])
    assert planned.cache_bytes == pytest.approx(measured, rel=0.005)


def test_workspace_grows_with_choices_and_shrinks_with_chunks():
    shape, n = Shape(config_of("llama")), 4096
    once = workspace_bytes(shape, _method(**{"type": "random", "block_size": 4}), n)
    by_head = _method(**{"type": "seer", "gates": "x", "block_size": 4, "density": 0.2})
    ranking = 56 * 1024**2
    assert workspace_bytes(shape, by_head, n) - once == 3 * ranking  # of four heads
    copied = 4 * n * (3 * 4 * 16 + 2 * 2 * 16)
    assert once == copied + 4 * n * 4 * 16 + ranking
    assert workspace_bytes(shape, None, n) == 0
    # Of a chunk of a quarter: its queries and rows of blocks, and all keys.
    keys = 4 * n * 2 * 2 * 16
    system = _method(**{"type": "random", "block_size": 4})
    assert workspace_bytes(shape, system, n, n // 4) == keys + (once - keys) // 4
    infini = _method(**{"type": "infini", "segment_length": 64})
    assert workspace_bytes(shape, infini, n, 256) == workspace_bytes(shape, infini, 256)


def test_peak_on_a_cpu_includes_the_process():
    model = Model(Shape(config_of("llama")))
    cpu, gpu = (model.cost(None, 500, devices()[name]) for name in ("cpu", "l4"))
    assert cpu.peak_bytes == gpu.peak_bytes + 480 * 2**20
    assert cpu.activation_bytes == gpu.activation_bytes > 0
    shared = Model(model.shape, opening=Opening(tp=2)).cost(None, 500, devices()["cpu"])
    assert shared.peak_bytes == cpu.peak_bytes + 480 * 2**20


def test_dense_layers_keep_no_state():
    shape = Shape(config_of("llama"))
    one, all_four = (
        state_bytes(shape, _method(**{"type": "xattention", "dense_layers": n}), 500)
        for n in (3, 0)
    )
    assert all_four == 4 * one > 0
    windowed = Shape(config_of("gemma3_text"))
    assert state_bytes(windowed, _method(**{"type": "xattention", "dense_layers": 3}), 500) > 0
    assert state_bytes(windowed, _method(**{"type": "xattention", "dense_layers": 4}), 500) == 0


def test_untrained_gates_have_no_width(tmp_path):
    method = _method(type="seer", gates=str(tmp_path))
    with pytest.raises(ValueError, match=r"gates: .* has no gates\.json"):
        state_bytes(Shape(config_of("llama")), method, 100)
