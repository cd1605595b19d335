"""Freezing and thawing caches."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from support.streamed_models import make
from support.streaming import random_ids
from transformers import DynamicCache

from needlework.evaluation.streaming.snapshot import (
    freeze,
    from_named_cpu,
    thaw,
    to_named_cpu,
)

IDS = random_ids(90)[None]


@torch.inference_mode()
def forward(model, start, end, cache):
    places = torch.arange(start, end)[None]
    return model(input_ids=IDS[:, start:end], past_key_values=cache, position_ids=places).logits


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "falcon_h1", "qwen3_next"])
def test_a_thawed_cache_continues_as_if_the_chunk_had_not_been_read(name, by_length):
    model = make(name)
    cache = DynamicCache(config=model.config)
    forward(model, 0, 70, cache)
    tensors: list[torch.Tensor] = []
    frozen = freeze(cache, tensors, by_length)
    # The structure goes into a file's header.
    frozen = json.loads(json.dumps(frozen))
    expected = forward(model, 70, 80, cache)
    thaw(frozen, tensors, cache)
    assert cache.get_seq_length() == 70
    assert torch.equal(forward(model, 70, 80, cache), expected)


def test_by_length_holds_no_keys_that_only_grow():
    model = make("llama")
    cache = DynamicCache(config=model.config)
    forward(model, 0, 20, cache)
    held = {}
    for by_length in (False, True):
        tensors: list[torch.Tensor] = []
        freeze(cache, tensors, by_length)
        held[by_length] = sum(x.numel() for x in tensors)
    assert held[False] >= 3 * 2 * 2 * 20 * 8
    assert held[True] < 2 * 2 * 20 * 8


def test_values_return_with_their_types():
    value = {"a": [1, (2.5, None)], 3: {"b": True, "c": torch.arange(3)}, "d": "text"}
    tensors: list[torch.Tensor] = []
    frozen = json.loads(json.dumps(freeze(value, tensors)))
    result = thaw(frozen, tensors, copy.deepcopy(value))
    assert torch.equal(result[3].pop("c"), torch.arange(3))
    assert result == {"a": [1, (2.5, None)], 3: {"b": True}, "d": "text"}


def test_tensors_are_copied_and_what_is_not_data_stays():
    state = SimpleNamespace(
        tensor=torch.zeros(2), dtype=torch.float32, module=torch.nn.Linear(1, 1)
    )
    module, tensors = state.module, []
    frozen = freeze(state, tensors)
    state.tensor += 1
    assert len(tensors) == 1
    assert thaw(frozen, tensors, state) is state
    assert state.tensor.tolist() == [0, 0]
    assert state.module is module
    assert state.dtype is torch.float32


def test_a_state_of_another_model_is_refused():
    frozen = freeze(SimpleNamespace(x=1), [])
    with pytest.raises(ValueError, match="the checkpoint belongs to another model; delete it"):
        thaw(frozen, [])


def test_tensors_for_a_file_share_no_memory():
    whole = torch.arange(6.0).view(2, 3)
    named = to_named_cpu([whole, whole[:, 1:]])
    assert {x.untyped_storage().data_ptr() for x in named.values()}.isdisjoint(
        {whole.untyped_storage().data_ptr()}
    )
    back = from_named_cpu(named, torch.device("cpu"))
    assert torch.equal(back[0], whole)
    assert torch.equal(back[1], whole[:, 1:])
