"""The head alone, against the whole model."""

import pytest
import torch
from support.tiny_models import FAMILIES, prompts, tiny

from needlework.models.head import bypass_base_model, has_head


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere2", "granite"])
def test_the_head_of_given_states_gives_the_models_logits(family):
    """Softcaps and scales of logits belong to the head."""
    model, ids = tiny(family), prompts([9])["input_ids"]
    assert family in FAMILIES
    with torch.inference_mode():
        expected = model(ids).logits
        output = model.base_model(ids)
        base = model.base_model
        with bypass_base_model(model, output) as bypass:
            assert model.base_model is bypass
            assert not bypass.was_called
            # Whatever the input is, nothing below the head is computed.
            logits = model(ids[:, :1]).logits
            assert bypass.was_called
    assert torch.equal(logits, expected)
    assert model.base_model is base


def test_the_base_model_returns_after_an_error():
    model = tiny()
    base, names = model.base_model, [name for name, _ in model.named_parameters()]
    with bypass_base_model(model, None) as bypass:
        assert bypass.config is base.config
    # None has no hidden states.
    with pytest.raises(AttributeError), bypass_base_model(model, None):
        model(prompts([3])["input_ids"])
    assert model.base_model is base
    assert [name for name, _ in model.named_parameters()] == names


def test_only_a_model_on_a_base_has_a_head():
    model = tiny()
    assert has_head(model)
    assert not has_head(model.base_model)
    assert not has_head(torch.nn.Linear(2, 2))
