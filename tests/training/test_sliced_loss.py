"""The loss on answers and text, in slices of logits."""

import pytest
import torch
from support.toy_training import PROSE, ROWS, characters, llama

from needlework.config.attention.infini import Infini
from needlework.models.convert import convert
from needlework.training import sliced_loss
from needlework.training.finetune import answer_loss, collate, encode


@pytest.mark.parametrize("max_logits", [2**26, 24, 24 * 7], ids=["whole", "one", "some"])
@pytest.mark.parametrize("kind", ["llama", "infini"])
def test_loss_covers_all_text_tokens_and_only_answers_of_rows(
    tokenizer, monkeypatch, kind, max_logits
):
    """In slices of one token, of several, or in one pass; gradients match too."""
    monkeypatch.setattr(sliced_loss, "MAX_LOGITS", max_logits)
    model = llama()
    offsets = None
    if kind == "infini":
        model = convert(model, Infini(segment_length=4, segment_alignment="end"))
        offsets = torch.tensor([0, 1, 2, 3])
    rows = [*encode(tokenizer, PROSE, 32)[:2], *encode(tokenizer, ROWS, 32)[:2]]
    expected = []
    for i, (prompt, answer) in enumerate(rows):
        more = {} if offsets is None else {"segment_offset": offsets[i : i + 1]}
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(ids, use_cache=False, **more).logits[0].log_softmax(-1)
        expected += [
            -logits[len(prompt) + j - 1, t]
            for j, t in enumerate(answer.tolist() if hasattr(answer, "tolist") else answer)
        ]
    assert len(expected) == 9 + 15 + 3 + 3
    expected_loss = torch.stack(expected).mean()
    gradients = torch.autograd.grad(expected_loss, [*model.parameters()])
    batch = collate(rows, 0, None if offsets is None else lambda lengths: offsets)
    got = answer_loss(model, batch, batch)
    torch.testing.assert_close(got, expected_loss, rtol=1e-5, atol=1e-6)
    actual = torch.autograd.grad(got, [*model.parameters()])
    for gradient, expected_gradient in zip(actual, gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_logits_are_computed_one_slice_at_a_time(monkeypatch):
    monkeypatch.setattr(sliced_loss, "MAX_LOGITS", 3 * 24)
    model, slice_lengths = llama(), []
    model.lm_head.register_forward_hook(lambda *call: slice_lengths.append(call[2].shape[1]))
    batch = collate(encode(characters(), PROSE, 32)[1:2], 0)
    answer_loss(model, batch, batch).backward()
    # One token probes the head; then 15 targets in threes, once forward and once in backward.
    assert slice_lengths == [1, *[3] * 10]
