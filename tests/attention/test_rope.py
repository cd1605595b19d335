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


def compared(model, forwards, dtype=torch.float32):
    """What a batch with padding on the left gives in forwards of so many tokens: for each layer
    and forward (what the family rotated, undone query and key)."""
    before, after, stock = {}, [], model.config._attn_implementation
    heard = Rotation(model)
    family = sys.modules[type(next(iter(heard._modules.values()))).__module__]
    turns = [n for n in vars(family) if n.startswith("apply_rotary") and callable(vars(family)[n])]

    def spied(turn):
        def spy(q, k, *args, **kwargs):
            before["now"] = q.clone(), k.clone(), turn.__name__
            return turn(q, k, *args, **kwargs)

        return spy

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        layer, new = module.layer_idx, query.shape[2]
        if layer in heard._modules:
            plain = before.get("now") or (query, key[:, :, -new:], None)
            undone = heard.undo(layer, query), heard.undo(layer, key[:, :, -new:])
            after.append((layer, plain, undone))
        before.pop("now", None)
        out = scaled_dot_product_attention(
            query, key, value, is_causal=new == key.shape[2], enable_gqa=True
        )
        return out.transpose(1, 2), None

    inputs, start = prompts([40, 31]), 0
    position = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    with pytest.MonkeyPatch.context() as patch:
        for name in turns:
            patch.setattr(family, name, spied(getattr(family, name)))
        patch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "overheard", attention)
        patch.setitem(
            ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, "overheard", lambda **arguments: None
        )
        model.set_attn_implementation("overheard")
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
    heard.remove()
    return after


@pytest.mark.parametrize("family", FAMILIES)
def test_undone_is_what_the_family_rotated(family):
    model = tiny(family)
    found = compared(model, [33, 1, 6])
    assert {layer for layer, _, _ in found} >= FAMILIES[family][2]
    for _, (query, key, turn), (undone_query, undone_key) in found:
        for plain, undone in ((query, undone_query), (key, undone_key)):
            if family == "deepseek-v3":
                # Only the last 8 of 16 turn; the keys' are one for all heads, and pairs were
                # (0, 1), (2, 3), ... of what is now in halves.
                assert turn == "apply_rotary_pos_emb_interleave"
                plain = torch.cat([plain[..., 0::2], plain[..., 1::2]], -1)
                plain = plain.expand(-1, undone.shape[1], -1, -1)
                undone = undone[..., 8:]
            torch.testing.assert_close(undone, plain, rtol=0, atol=1e-5)
    # Else nothing was rotated that could have been left as it is.
    if family not in ("llama4", "cohere2"):
        assert any(turn for _, (_, _, turn), _ in found)


@pytest.mark.parametrize(
    ("rope", "scale"), [(YARN, 1.13863), (LLAMA3, 1.0)], ids=["yarn", "llama3"]
)
def test_scaled_angles_are_undone(rope, scale):
    model = tiny("llama", {"rope_parameters": rope, "max_position_embeddings": 256})
    for _, plain, undone in compared(model, [40]):
        for one, other in zip(plain, undone, strict=False):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    heard = Rotation(model)
    cos, sin = heard.at(torch.tensor([[0, 7]]), 8)
    its_cos, its_sin = model.model.rotary_emb(torch.zeros(1), torch.tensor([[0, 7]]))
    torch.testing.assert_close(cos, its_cos)
    torch.testing.assert_close(sin, its_sin)
    assert float(cos[0, 0, 0]) == pytest.approx(scale, abs=1e-4)


def test_half_precision_is_undone_as_well_as_it_rounds():
    for family in ("llama", "cohere2", "glm4", "deepseek-v3", "smollm3"):
        model = tiny(family).to(torch.bfloat16)
        Rotation(model).remove()
    model = tiny("llama").to(torch.bfloat16)
    for _, plain, undone in compared(model, [33, 1, 6]):
        for one, other in zip(plain, undone, strict=False):
            assert (one.float() - other).abs().max() < 0.02 * one.float().abs().max()


def test_angles_are_by_halves_at_each_position():
    heard = Rotation(tiny("llama"))
    assert heard.theta == 10000
    torch.manual_seed(0)
    x, positions = torch.randn(2, 3, 4, 6), torch.tensor([[0, 5, 9, 70], [1, 2, 3, 4]])
    found = rotate(x, heard.at(positions, 6))
    for b in range(2):
        for t in range(4):
            for i in range(3):
                angle = positions[b, t].item() * 10000 ** (-2 * i / 6)
                low, high = x[b, :, t, i], x[b, :, t, i + 3]
                turned = low * math.cos(angle) - high * math.sin(angle)
                torch.testing.assert_close(found[b, :, t, i], turned, rtol=0, atol=1e-5)
                turned = high * math.cos(angle) + low * math.sin(angle)
                torch.testing.assert_close(found[b, :, t, i + 3], turned, rtol=0, atol=1e-5)


def test_a_rotation_that_is_not_known_is_refused_and_leaves_no_trace():
    everywhere = {"layer_types": ["full_attention"] * 4, "no_rope_layers": [1, 1, 1, 1]}
    model = tiny("llama4", everywhere)
    with pytest.raises(ValueError, match="layer 0 of model_type 'llama4_text' rotates") as error:
        Rotation(model)
    assert "\n" not in str(error.value)
    assert _is_untouched(model)


def test_nothing_stays_behind():
    model = tiny("llama")
    inputs = prompts([20])
    stock = model(**inputs).logits
    heard = Rotation(model)
    assert torch.equal(model(**inputs).logits, stock)
    assert not _is_untouched(model)
    heard.remove()
    heard.remove()
    assert _is_untouched(model)


def _is_untouched(model):
    hooks = any(module._forward_pre_hooks for module in model.modules())
    mapped = {rope.NAME} & {*ALL_ATTENTION_FUNCTIONS, *ALL_MASK_ATTENTION_FUNCTIONS}
    return not hooks and not mapped and model.config._attn_implementation == "sdpa"


def test_the_signature_tells_weights_from_others():
    model = tiny("qwen3")
    one, shapes = Rotation(model).signatures, Rotation(model).shapes
    assert shapes == dict.fromkeys(range(4), (4, 2, 8))
    assert one[0].shape == (4 * 8 + 2 * 8,)
    assert torch.equal(Rotation(model).signatures[0], one[0])
    half = Rotation(model.to(torch.bfloat16)).signatures[0]
    assert (half - one[0]).norm() < 0.02 * one[0].norm()
    model.float().model.layers[0].self_attn.k_proj.weight.data.normal_()
    assert (Rotation(model).signatures[0] - one[0]).norm() > 0.2 * one[0].norm()
