"""Another segment alignment for an evaluation."""

import pytest
import torch
from support.infini_models import infini_model, llama, tokens

from needlework.attention.apply import apply
from needlework.config.attention.infini import InfiniAlignment


def model_of(alignment):
    return infini_model(segment_length=6, segment_alignment=alignment)


def logits_of(model):
    """Logits of 13 tokens after a prompt that would not end in the middle of a segment."""
    ids = tokens(1, 14)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=13,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(out.logits)


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["start", "end"])
def test_another_alignment_can_be_applied_and_removed(saved):
    model = model_of(saved)
    own = logits_of(model)
    for alignment in ("start", "end"):
        expected = logits_of(model_of(alignment))
        assert torch.equal(expected, own) == (alignment == saved)
        with apply(model, InfiniAlignment(segment_alignment=alignment)):
            assert torch.equal(logits_of(model), expected)
        assert torch.equal(logits_of(model), own)
        assert model.config.infini["segment_alignment"] == saved


def test_a_model_without_infini_attention_is_refused():
    with pytest.raises(ValueError, match="model_type llama has no Infini-attention; choose an"):
        apply(llama(), InfiniAlignment(segment_alignment="end"))
