"""Copies of a model, made while a system is applied."""

import copy
import pickle

import pytest
import torch
from support.tiny_models import prompts, tiny
from transformers import AutoModelForCausalLM

from needlework.attention.apply import apply
from needlework.config.attention.random import Random

SYSTEM = Random(block_size=8, density=0.2, dense_layers=1)


@pytest.fixture(scope="module")
def llama():
    return tiny()


def logits_of(model):
    with torch.inference_mode():
        return model(**prompts([61])).logits


def differs(a, b):
    return float((a - b).abs().max()) > 1e-3


@pytest.mark.parametrize("removed", [False, True], ids=["applied", "removed"])
def test_a_deep_copy_is_a_stock_model(llama, removed):
    stock = logits_of(llama)
    with apply(llama, SYSTEM) as handle:
        sparse = logits_of(llama)
        copied = copy.deepcopy(llama)
        if removed:
            handle.remove()
        assert torch.equal(logits_of(copied), stock)
        assert (
            copied.config._attn_implementation == llama.config._attn_implementation or not removed
        )
        if not removed:
            assert torch.equal(logits_of(llama), sparse)
        generated = copied.generate(**prompts([61]), max_new_tokens=4, prompt_lookup_num_tokens=2)
        assert generated.shape == (1, 65)
    assert differs(sparse, stock)
    assert torch.equal(logits_of(llama), stock)


def test_a_deep_copy_takes_a_system_of_its_own(llama):
    with apply(llama, SYSTEM):
        sparse = logits_of(llama)
        copied = copy.deepcopy(llama)
        with apply(copied, Random(block_size=8, density=1.0, dense_layers=1)):
            assert differs(logits_of(copied), sparse)
        assert torch.equal(logits_of(llama), sparse)


def test_a_copied_layer_is_refused(llama):
    with apply(llama, SYSTEM):
        layer = copy.deepcopy(llama.model.layers[1].self_attn)
    rotary = llama.model.rotary_emb(torch.zeros(1, 4, 32), torch.arange(4)[None])
    with apply(llama, SYSTEM), pytest.raises(ValueError, match="is a copy of a module"):
        layer(torch.zeros(1, 4, 32), position_embeddings=rotary, attention_mask=None)


def test_a_saved_model_has_its_own_attention(llama, tmp_path):
    stock = logits_of(llama)
    with apply(llama, SYSTEM):
        llama.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), stock)


def test_pickling_is_refused(llama):
    with apply(llama, SYSTEM), pytest.raises(TypeError, match=r"call its remove\(\) before pick"):
        pickle.dumps(llama)
