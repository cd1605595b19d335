import math
import sys

import pytest
import torch
from support.tiny_models import FAMILIES, prompts, tiny
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from needlework.attention import rope
from needlework.attention.rope import Rotation, rotate

# The others have no RoPE, attend twice per layer, or rotate parts that they split off before.
RECORDED = [family for family in FAMILIES if family not in ("opt", "diffllama", "stablelm")]
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def undo(rotation, layer, name, x):
    return rotation.undo(layer, x)


def plain(rotation, layer, name, x):
    return torch.cat([*rotation.plain(layer, name, x, heads=1)], 1)


def undo_in_forwards(model, forwards, undo=undo):
    """Compare RoPE's inputs with what `undo` returns, on a left-padded batch.

    Each forward has as many tokens as `forwards` says. Returns, for each layer and forward, (layer,
    (query and key before RoPE, name of the family's function), (query and key after undo)).
    """
    before, after, stock = {}, [], model.config._attn_implementation
    rotation = Rotation(model)
    family = sys.modules[type(next(iter(rotation._modules.values()))).__module__]
    rope_functions = [
        n for n in vars(family) if n.startswith("apply_rotary") and callable(vars(family)[n])
    ]

    def recorded(function):
        def wrapper(q, k, *args, **kwargs):
            before["call"] = q.clone(), k.clone(), function.__name__
            return function(q, k, *args, **kwargs)

        return wrapper

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        layer, new = module.layer_idx, query.shape[2]
        if layer in rotation._modules:
            plain = before.get("call") or (query, key[:, :, -new:], None)
            undone = (
                undo(rotation, layer, "query", query),
                undo(rotation, layer, "key", key[:, :, -new:]),
            )
            after.append((layer, plain, undone))
        before.pop("call", None)
        out = scaled_dot_product_attention(
            query, key, value, is_causal=new == key.shape[2], enable_gqa=True
        )
        return out.transpose(1, 2), None

    inputs, start = prompts([40, 31]), 0
    position = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    with pytest.MonkeyPatch.context() as patch:
        for name in rope_functions:
            patch.setattr(family, name, recorded(getattr(family, name)))
        patch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "recorded", attention)
        patch.setitem(
            ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, "recorded", lambda **arguments: None
        )
        model.set_attn_implementation("recorded")
        for new in forwards:
            end = start + new
            with torch.no_grad():
                model.base_model(
                    input_ids=inputs["input_ids"][:, start:end],
                    position_ids=position[:, start:end],
                    past_key_values=cache,
                )
            start = end
        model.set_attn_implementation(stock)
    rotation.remove()
    return after


@pytest.mark.parametrize("undo", [undo, plain])
@pytest.mark.parametrize("family", RECORDED)
def test_undo_returns_the_input_of_the_familys_rope(family, undo):
    model = tiny(family)
    comparisons = undo_in_forwards(model, [33, 1, 6], undo)
    assert {layer for layer, _, _ in comparisons} >= FAMILIES[family][2]
    for _, (query, key, function), (undone_query, undone_key) in comparisons:
        for plain, undone in ((query, undone_query), (key, undone_key)):
            if family == "deepseek-v3":
                # Only the last 8 of 16 dimensions rotate. Their keys are common to all heads, and
                # the interleaved pairs (0, 1), (2, 3), ... come out as halves.
                assert function == "apply_rotary_pos_emb_interleave"
                plain = torch.cat([plain[..., 0::2], plain[..., 1::2]], -1)
                plain = plain.expand(-1, undone.shape[1], -1, -1)
                undone = undone[..., 8:]
            torch.testing.assert_close(undone, plain, rtol=0, atol=1e-5)
    # The family's own RoPE was recorded, so that the comparison is not trivial.
    if family not in ("llama4", "cohere2"):
        assert any(function for _, (_, _, function), _ in comparisons)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "granite", "smollm3"])
def test_outputs_of_projections_and_norms_are_read_without_undoing(family, monkeypatch):
    model = tiny(family)

    def exact(rotation, layer, name, x):
        with monkeypatch.context() as patch:
            patch.setattr(Rotation, "undo", None)
            return plain(rotation, layer, name, x)

    for _, expected, found in undo_in_forwards(model, [33, 1, 6], exact):
        assert all(map(torch.equal, expected[:2], found))


def test_no_output_is_kept_after_a_layer():
    model = tiny("llama")
    rotation = Rotation(model)
    model(**prompts([20]))
    assert not rotation._outputs


@pytest.mark.parametrize(
    ("rope", "scale"), [(YARN, 1.13863), (LLAMA3, 1.0)], ids=["yarn", "llama3"]
)
def test_scaled_angles_are_undone(rope, scale):
    model = tiny("llama", {"rope_parameters": rope, "max_position_embeddings": 256})
    for _, plain, undone in undo_in_forwards(model, [40]):
        for expected, actual in zip(plain, undone, strict=False):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    rotation = Rotation(model)
    cos, sin = rotation.at(torch.tensor([[0, 7]]), 8)
    model_cos, model_sin = model.model.rotary_emb(torch.zeros(1), torch.tensor([[0, 7]]))
    torch.testing.assert_close(cos, model_cos)
    torch.testing.assert_close(sin, model_sin)
    assert float(cos[0, 0, 0]) == pytest.approx(scale, abs=1e-4)


def test_undo_is_as_exact_as_half_precision_allows():
    for family in ("llama", "cohere2", "glm4", "deepseek-v3", "smollm3"):
        model = tiny(family).to(torch.bfloat16)
        Rotation(model).remove()
    model = tiny("llama").to(torch.bfloat16)
    for _, plain, undone in undo_in_forwards(model, [33, 1, 6]):
        for expected, actual in zip(plain, undone, strict=False):
            assert (expected.float() - actual).abs().max() < 0.02 * expected.float().abs().max()


def test_rotate_pairs_halves_at_each_position():
    rotation = Rotation(tiny("llama"))
    assert rotation.theta == 10000
    torch.manual_seed(0)
    x, positions = torch.randn(2, 3, 4, 6), torch.tensor([[0, 5, 9, 70], [1, 2, 3, 4]])
    rotated = rotate(x, rotation.at(positions, 6))
    for b in range(2):
        for t in range(4):
            for i in range(3):
                angle = positions[b, t].item() * 10000 ** (-2 * i / 6)
                low, high = x[b, :, t, i], x[b, :, t, i + 3]
                expected = low * math.cos(angle) - high * math.sin(angle)
                torch.testing.assert_close(rotated[b, :, t, i], expected, rtol=0, atol=1e-5)
                expected = high * math.cos(angle) + low * math.sin(angle)
                torch.testing.assert_close(rotated[b, :, t, i + 3], expected, rtol=0, atol=1e-5)


def test_unsupported_rotation_is_refused_and_leaves_the_model_unchanged():
    everywhere = {"layer_types": ["full_attention"] * 4, "no_rope_layers": [1, 1, 1, 1]}
    model = tiny("llama4", everywhere)
    with pytest.raises(ValueError, match="layer 0 of model_type 'llama4_text' rotates") as error:
        Rotation(model)
    assert "\n" not in str(error.value)
    assert _is_untouched(model)


def test_removal_leaves_the_model_unchanged():
    model = tiny("llama")
    inputs = prompts([20])
    stock = model(**inputs).logits
    rotation = Rotation(model)
    assert torch.equal(model(**inputs).logits, stock)
    assert not _is_untouched(model)
    rotation.remove()
    rotation.remove()
    assert _is_untouched(model)


def _is_untouched(model):
    hooks = any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    registered = {rope.NAME} & {*ALL_ATTENTION_FUNCTIONS, *ALL_MASK_ATTENTION_FUNCTIONS}
    return not hooks and not registered and model.config._attn_implementation == "sdpa"


def test_signature_identifies_weights():
    model = tiny("qwen3")
    signatures, shapes = Rotation(model).signatures, Rotation(model).shapes
    assert shapes == dict.fromkeys(range(4), (4, 2, 8))
    assert signatures[0].shape == (4 * 8 + 2 * 8,)
    assert torch.equal(Rotation(model).signatures[0], signatures[0])
    half = Rotation(model.to(torch.bfloat16)).signatures[0]
    assert (half - signatures[0]).norm() < 0.02 * signatures[0].norm()
    model.float().model.layers[0].self_attn.k_proj.weight.data.normal_()
    assert (Rotation(model).signatures[0] - signatures[0]).norm() > 0.2 * signatures[0].norm()
