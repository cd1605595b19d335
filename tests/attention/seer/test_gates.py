import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.rope_reference import rotate_vector
from support.tiny_models import tiny
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from needlework import Infini, Window, apply
from needlework.attention.rope import Rotation
from needlework.attention.seer.gates import DecodeGate, Gates, PrefillGate, pool_keys
from needlework.models.convert import convert

shapes = {
    "batch": st.integers(1, 2),
    "heads": st.sampled_from([(1, 1), (4, 2), (3, 1), (4, 4)]),
    "sizes": st.sampled_from([(4, 4), (4, 6), (6, 2), (2, 2)]),
    "rows": st.integers(1, 3),
    "blocks": st.integers(1, 4),
    "seed": st.integers(0, 99),
}


@pytest.fixture(scope="module")
def angles():
    """Angles of a model with theta 10000."""
    return Rotation(tiny("llama")).at


@given(**shapes)
@settings(deadline=None, max_examples=40)
def test_prefill_gate_matches_its_formula(angles, batch, heads, sizes, rows, blocks, seed):
    """If the gate is as wide as a head, queries are not projected and keys are, per query head."""
    torch.manual_seed(seed)
    (h, kv), (d, g) = heads, sizes
    gate = PrefillGate(h, kv, d, g)
    assert gate.key.shape == (h if g == d else kv, 3 * d, g)
    assert gate.query is None if g == d else gate.query.shape == (h, d, g)
    query, pools = torch.randn(batch, h, rows, d), torch.randn(batch, kv, blocks, 3 * d)
    query_at, key_at = (torch.randint(0, 40, (batch, n)) for n in (rows, blocks))
    logits = gate(query, pools, angles(query_at, g), angles(key_at, g)).detach()
    assert logits.shape == (batch, h, rows, blocks)
    weights = gate.key.detach().double().numpy()
    for b in range(batch):
        for head in range(h):
            kv_head = head // (h // kv)
            for r in range(rows):
                q = query[b, head, r].double().numpy()
                if g != d:
                    q = q @ gate.query[head].detach().double().numpy()
                q = rotate_vector(q, query_at[b, r].item())
                for j in range(blocks):
                    k = pools[b, kv_head, j].double().numpy() @ weights[head if g == d else kv_head]
                    k = rotate_vector(k, key_at[b, j].item())
                    assert logits[b, head, r, j] == pytest.approx(q @ k / math.sqrt(g), abs=1e-4)


@given(**shapes)
@settings(deadline=None, max_examples=40)
def test_decode_gate_matches_its_formula(angles, batch, heads, sizes, rows, blocks, seed):
    torch.manual_seed(seed)
    (h, kv), (d, g) = heads, sizes
    gate = DecodeGate(h, kv, d, g)
    assert gate.query.shape == (kv, h // kv, d, g)
    assert gate.key.shape == (kv, 3 * d, g)
    query, pools = torch.randn(batch, h, rows, d), torch.randn(batch, kv, blocks, 3 * d)
    query_at, key_at = (torch.randint(0, 40, (batch, n)) for n in (rows, blocks))
    logits = gate(query, pools, angles(query_at, g), angles(key_at, g)).detach()
    assert logits.shape == (batch, kv, rows, blocks)
    for b in range(batch):
        for head in range(kv):
            for r in range(rows):
                q = np.zeros(g)
                for i in range(h // kv):
                    weights = gate.query[head, i].detach().double().numpy()
                    q += query[b, head * (h // kv) + i, r].double().numpy() @ weights
                q = rotate_vector(q, query_at[b, r].item())
                for j in range(blocks):
                    weights = gate.key[head].detach().double().numpy()
                    k = pools[b, head, j].double().numpy() @ weights
                    k = rotate_vector(k, key_at[b, j].item())
                    assert logits[b, head, r, j] == pytest.approx(q @ k / math.sqrt(g), abs=1e-4)


@given(
    blocks=st.integers(1, 4),
    size=st.integers(1, 5),
    heads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_pools_cover_real_tokens_only(blocks, size, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    # Far from 0, so that counting a padding token would show.
    key = torch.randn(2, heads, blocks, size, 3, generator=generator) * 5 + 20
    is_real = torch.rand(2, 1, blocks, size, 1, generator=generator) < 0.6
    pools = pool_keys(key, is_real)
    assert pools.shape == (2, heads, blocks, 9)
    for b in range(2):
        for h in range(heads):
            for j in range(blocks):
                real = [t for t in range(size) if is_real[b, 0, j, t, 0]]
                for c in range(3):
                    values = [key[b, h, j, t, c].item() for t in real]
                    pooled = pools[b, h, j, [c, c + 3, c + 6]].tolist()
                    expected = [0, 0, 0]
                    if values:
                        expected = [max(values), min(values), sum(values) / len(values)]
                    assert pooled == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def qwen3():
    return tiny("qwen3")


@pytest.fixture
def folder(qwen3, tmp_path):
    torch.manual_seed(0)
    Gates.new(qwen3, block_size=8, gate_dim=6).save(tmp_path / "gates")
    return tmp_path / "gates"


def test_saved_gates_reopen_unchanged(qwen3, tmp_path):
    torch.manual_seed(1)
    gates = Gates.new(qwen3, block_size=4)
    assert gates.description.gate_dim == 8
    assert {*gates.prefill} == {*gates.decode} == {"0", "1", "2", "3"}
    gates.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gates.json", "gates.safetensors"]
    before = torch.get_rng_state()
    opened = Gates.open(tmp_path, qwen3)
    assert torch.equal(torch.get_rng_state(), before)
    assert opened.description == gates.description
    assert opened.state_dict().keys() == gates.state_dict().keys()
    for name, x in gates.state_dict().items():
        assert torch.equal(opened.state_dict()[name], x)
    assert not any(p.requires_grad for p in opened.parameters())
    # Saving to a folder with gates replaces them.
    others = Gates.new(qwen3, block_size=16, stages=["decode"])
    others.save(tmp_path)
    opened = Gates.open(tmp_path, qwen3)
    assert opened.description.block_size == 16
    assert not len(opened.prefill)
    assert torch.equal(opened.decode["2"].key, others.decode["2"].key)


def test_gates_open_for_their_model_in_another_dtype(qwen3, folder):
    half = tiny("qwen3").to(torch.bfloat16)
    assert next(Gates.open(folder, half).parameters()).dtype == torch.float32


def test_failed_save_leaves_no_gates(qwen3, tmp_path):
    gates = Gates.new(qwen3, block_size=8)
    gates.save(tmp_path)
    (tmp_path / "gates.safetensors").unlink()
    (tmp_path / "gates.safetensors").mkdir()
    with pytest.raises(OSError, match=r"gates\.safetensors"):
        gates.save(tmp_path)
    with pytest.raises(ValueError, match=r"has no gates\.json"):
        Gates.open(tmp_path, qwen3)


def refusal(folder, model):
    with pytest.raises(ValueError, match=r"^gates: ") as error:
        Gates.open(folder, model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_and_weights_are_named(qwen3, folder, tmp_path):
    assert "has no gates.json" in refusal(tmp_path / "nowhere", qwen3)
    weights = load_file(folder / "gates.safetensors")
    incomplete = {name: x for name, x in weights.items() if name != "decode.2.query"}
    save_file(incomplete, folder / "gates.safetensors")
    assert "decode.2.query is missing" in refusal(folder, qwen3)
    save_file(weights | {"decode.9.query": torch.ones(1)}, folder / "gates.safetensors")
    assert "decode.9.query is not one of these gates" in refusal(folder, qwen3)
    wrong = weights | {"prefill.1.key": weights["prefill.1.key"][..., :4].clone()}
    save_file(wrong, folder / "gates.safetensors")
    assert (
        "prefill.1.key has shape [2, 24, 4], not [2, 24, 6]; distill or copy them again"
        in refusal(folder, qwen3)
    )
    (folder / "gates.safetensors").unlink()
    assert "has no gates.safetensors" in refusal(folder, qwen3)


def test_truncated_weights_are_refused(qwen3, folder):
    file = folder / "gates.safetensors"
    content = file.read_bytes()
    for part in (b"", content[:5], content[:200], content[:-4]):
        file.write_bytes(part)
        message = refusal(folder, qwen3)
        assert message.startswith(f"gates: {file}: ")
        assert message.endswith("; distill or copy them again")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"block_size": "8"}, "block_size: Input should be a valid integer"),
        ({"block_size": 0}, "block_size: Input should be greater than or equal to 1"),
        ({"gate_dim": 0}, "gate_dim: Input should be greater than or equal to 2"),
        ({"gate_dim": 5}, "gate_dim: Input should be a multiple of 2"),
        ({"dtype": "float99"}, "dtype: float99 is not a floating-point dtype of torch"),
        ({"dtype": "nn"}, "dtype: nn is not a floating-point dtype of torch"),
        ({"dtype": "int32"}, "dtype: int32 is not a floating-point dtype of torch"),
        ({"signature": [1.0]}, "signature.0: Input should be a valid "),
        (b"{", "Invalid JSON: EOF while parsing an object at line 1 column 1"),
        (b"", "Invalid JSON: EOF"),
        (b"\xff", "Invalid JSON: "),
        (b"[]", "Input should be an object"),
    ],
)
def test_invalid_description_is_refused(qwen3, folder, change, problem):
    file = folder / "gates.json"
    description = json.loads(file.read_text())
    file.write_bytes(
        change if isinstance(change, bytes) else json.dumps(description | change).encode()
    )
    message = refusal(folder, qwen3)
    assert message.startswith(f"gates: {file}: {problem}")
    assert message.endswith("; distill or copy them again")


def test_gates_of_another_model_are_refused(folder):
    assert "model_type qwen3" in refusal(folder, tiny("llama"))
    assert "kv_heads 2 (unnamed), but this model has 4" in refusal(
        folder, tiny("qwen3", {"num_key_value_heads": 4})
    )
    assert "layers (0, 1, 2, 3)" in refusal(folder, tiny("qwen3", {"num_hidden_layers": 3}))
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert "rope_theta 10000.0" in refusal(folder, tiny("qwen3", rope))
    other = tiny("qwen3")
    # A change as small as that of a short fine-tuning.
    weight = other.model.layers[0].self_attn.q_proj.weight.data
    weight += 0.01 * torch.randn_like(weight) * weight.std()
    assert "same shape with other weights (unnamed)" in refusal(folder, other)
    weight.normal_()
    assert "other weights" in refusal(folder, other.to(torch.bfloat16))


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"])
def test_other_weights_in_one_layer_are_detected(folder, layer, name):
    """Except in the last MLP, on which no query or key depends."""
    other = tiny("qwen3")
    weight = other.model.layers[layer].get_submodule(name).weight.data
    weight += 0.01 * torch.randn_like(weight) * weight.std()
    if (name, layer) == ("mlp.down_proj", 3):
        Gates.open(folder, other)
    else:
        assert "same shape with other weights" in refusal(folder, other)


def test_deep_model_in_half_precision_is_recognized(tmp_path):
    model, copy = (tiny("qwen3", {"num_hidden_layers": 40}) for _ in range(2))
    Gates.new(model, block_size=8).save(tmp_path)
    Gates.open(tmp_path, copy.to(torch.bfloat16))


def test_invalid_shapes_of_gates_are_refused(qwen3):
    with pytest.raises(ValueError, match="gate_dim: 5 is odd or below 2"):
        Gates.new(qwen3, block_size=8, gate_dim=5)
    with pytest.raises(ValueError, match="gate_dim: 0 is odd or below 2"):
        Gates.new(qwen3, block_size=8, gate_dim=0)
    with pytest.raises(ValueError, match="block_size: 0 is below 1"):
        Gates.new(qwen3, block_size=0)


def test_models_that_apply_refuses_get_no_gates(qwen3):
    mamba = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64))
    infini = convert(tiny("llama"), Infini(segment_length=8))
    learned = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)
    for model, complaint in (
        (
            mamba,
            "model: mamba has no layer with causal attention|computes attention in its own code",
        ),
        (infini, "model: has infini as its own attention; choose"),
        (GPT2LMHeadModel(learned), "'gpt2' has fewer than 62 learned positions and no RoPE"),
        (tiny("llama").model.layers[0], "model: is a LlamaDecoderLayer"),
    ):
        before = [len(module._forward_pre_hooks) for module in model.modules()]
        with pytest.raises(ValueError, match=complaint) as error:
            Gates.new(model, block_size=8)
        assert "\n" not in str(error.value)
        assert [len(module._forward_pre_hooks) for module in model.modules()] == before
    with (
        apply(qwen3, Window()),
        pytest.raises(ValueError, match="model: has an attention system already"),
    ):
        Gates.new(qwen3, block_size=8)
