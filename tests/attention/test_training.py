"""Gradients of a model under an attention system, with and without gradient checkpointing."""

import copy
from contextlib import nullcontext

import pytest
import torch
from support.tiny_models import prompts, run, tiny
from transformers import DynamicCache

from needlework.attention.apply import apply
from needlework.attention.seer.gates import Gates
from needlework.config.attention.base import BlockSparse
from needlework.config.attention.oracle import Oracle
from needlework.config.attention.random import Random
from needlework.config.attention.seer import Seer
from needlework.config.attention.sketchwalk import SketchWalk
from needlework.config.attention.window import Window
from needlework.config.attention.xattention import XAttention

BLOCK = 8
SHARES = {
    "all": {"density": 1.0},
    "some": {"density": 0.3},
}
CHECKPOINTING = pytest.mark.parametrize("use_reentrant", [False, True])


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def systems(model, tmp_path_factory):
    """Every block-sparse system, with all blocks kept or some."""
    folder = tmp_path_factory.mktemp("gates")
    Gates.new(model, block_size=BLOCK).save(folder)
    own = {
        "random": (Random, {}),
        "oracle": (Oracle, {}),
        "xattention": (XAttention, {"stride": 4, "choices": "layer"}),
        "xattention-head": (XAttention, {"stride": 4, "choices": "head"}),
        "sketchwalk": (SketchWalk, {}),
        "sketchwalk-sparse": (SketchWalk, {"walk_memory": "sparse"}),
        "sketchwalk-box": (SketchWalk, {"preset": "box"}),
        "seer": (Seer, {"gates": str(folder), "dense_last_rows": 0}),
    }
    built: dict[tuple[str, str], BlockSparse] = {
        (name, share): cls(block_size=BLOCK, **{"dense_layers": 1} | keys | SHARES[share])
        for name, (cls, keys) in own.items()
        for share in SHARES
    }
    for share, recent in (("all", 1000), ("some", 20)):
        built["window", share] = Window(block_size=BLOCK, dense_layers=1, recent_tokens=recent)
    return built


NAMES = ["random", "oracle", "xattention", "xattention-head", "sketchwalk", "sketchwalk-sparse"]
NAMES += ["sketchwalk-box", "seer", "window"]
every_system = pytest.mark.parametrize("name", NAMES)


def gradients(model, system: BlockSparse | None, use_reentrant: bool | None = None) -> dict:
    """Gradient of the loss on 61 and 50 tokens for each parameter, and the density of
    the prefill in sparse layers."""
    inputs = prompts([61, 50])
    # Stock implementations differ in what they compute for padding, which predicts the first token.
    is_predicted = inputs["attention_mask"].roll(1, 1).bool() & inputs["attention_mask"].bool()
    labels = inputs["input_ids"].masked_fill(~is_predicted, -100)
    model.train()
    model.zero_grad()
    if use_reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.enable_input_require_grads()
    try:
        if system is None:
            model(**inputs, labels=labels, use_cache=False).loss.backward()
        else:
            with apply(model, system) as handle:
                model(**inputs, labels=labels, use_cache=False).loss.backward()
                density = handle.density()
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    collected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return collected if system is None else collected | {"density": density.sparse_layers_prefill}


def difference(a: dict, b: dict) -> float:
    """The largest difference of any gradient."""
    assert a.keys() - {"density"} == b.keys() - {"density"}
    return max(float((a[name] - b[name]).abs().max()) for name in a.keys() - {"density"})


@every_system
def test_gradients_with_all_blocks_are_those_of_the_model(model, systems, name):
    assert difference(gradients(model, systems[name, "all"]), gradients(model, None)) <= 1e-6


@pytest.mark.parametrize("family", ["gemma2", "gpt-oss", "deepseek-v3"])
def test_gradients_include_soft_caps_sinks_and_wide_keys(family):
    model = tiny(family)
    whole = Random(block_size=BLOCK, dense_layers=1, density=1.0)
    assert difference(gradients(model, whole), gradients(model, None)) <= 1e-6


def test_gradients_of_decoded_tokens_are_those_of_the_model(model):
    """The kernel of one token sums values without copies of them."""
    ids, found = prompts([36])["input_ids"], []
    for on in (nullcontext(), apply(model, Random(block_size=BLOCK, dense_layers=1, density=1.0))):
        cache = DynamicCache(config=model.config)
        model.zero_grad()
        with on:
            parts = ids.split([33, 1, 1, 1], 1)
            logits = [model(input_ids=part, past_key_values=cache).logits for part in parts]
            torch.cat(logits[1:], 1).log_softmax(-1)[..., 5].mean().backward()
        found.append({name: x.grad.clone() for name, x in model.named_parameters()})
    assert difference(*found) <= 1e-6


@CHECKPOINTING
@every_system
def test_checkpointing_changes_no_gradient_and_no_density(model, systems, name, use_reentrant):
    plain = gradients(model, systems[name, "some"])
    repeated = gradients(model, systems[name, "some"], use_reentrant)
    assert plain["density"] < 0.7
    assert repeated["density"] == plain["density"]
    assert difference(repeated, plain) <= 1e-6
    assert difference(plain, gradients(model, None)) > 1e-3


def test_gradients_of_chosen_blocks_are_those_of_a_dense_mask(model, systems, monkeypatch):
    """Against attention over all pairs with the chosen blocks as a mask."""
    system = systems["random", "some"]
    sparse = gradients(model, system)

    def masked(query, key, value, chosen, blocks, *, scaling, dropout, **_):
        kept = torch.zeros(*chosen.shape[:2], blocks.count + 1, dtype=torch.bool)
        kept.scatter_(2, chosen % (blocks.count + 1), value=True)
        n = query.shape[2]
        group = query.shape[1] // key.shape[1]
        allowed = torch.zeros(len(query), n, n, dtype=torch.bool)
        for b, first in enumerate(blocks.mask.first):
            for q in range(first, n):
                for k in range(first, q + 1):
                    row, block = (q - first) // BLOCK, (k - first) // BLOCK
                    allowed[b, q, k] = kept[b, row, block]
        scores = query @ key.repeat_interleave(group, 1).transpose(-1, -2) * scaling
        weights = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1).nan_to_num()
        return weights @ value.repeat_interleave(group, 1), allowed.sum().double()

    monkeypatch.setattr("needlework.attention.apply.attend", masked)
    assert difference(gradients(model, system), sparse) <= 1e-6


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_backward_after_removal_is_refused(model, systems, implementation):
    """Checkpointing would compute the layers again, with the model's own attention."""
    model = copy.deepcopy(model).train()
    model.set_attn_implementation(implementation)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = prompts([30])
    with apply(model, systems["sketchwalk", "some"]):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    with pytest.raises(ValueError, match=r"call backward\(\) before the handle's remove"):
        loss.backward()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    with (
        apply(model, systems["sketchwalk", "some"]),
        pytest.raises(ValueError, match=r"call apply\(\) before the forward"),
    ):
        loss.backward()


@pytest.mark.parametrize("family", ["stablelm", "nemotron"])
def test_families_that_drop_layer_arguments_refuse_checkpointing(family):
    model = tiny(family)
    with pytest.raises(ValueError, match="turn checkpointing off"):
        gradients(model, Random(block_size=BLOCK, dense_layers=1), use_reentrant=False)


def test_layers_that_attend_twice_with_one_query_advance_once():
    """DiffLlama, whose two calls per layer differ in the values."""
    model = tiny("diffllama")
    system = SketchWalk(block_size=BLOCK, density=0.3, dense_layers=1)
    with apply(model, system), torch.inference_mode():
        whole = run(model, prompts([64])["input_ids"], [64])
        chunks = run(model, prompts([64])["input_ids"], [16, 16, 32])
    assert (chunks - whole).abs().max() <= 1e-5
