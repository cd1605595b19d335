"""Loss on held-out text during training."""

import numpy as np
import pytest
import torch
from support.streamed_models import make
from support.streaming import one_pass_losses, random_ids

from needlework.evaluation.streaming.held_out import HeldOut

IDS = random_ids(90)


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "0.npy", IDS.numpy().astype(np.uint32))
    np.save(tmp_path / "0.starts.npy", np.array([0]))
    return {"tokens": tmp_path / "0.npy", "starts": tmp_path / "0.starts.npy"}


def test_the_loss_is_that_of_one_pass_over_the_first_tokens(files):
    model = make("llama")
    loss = HeldOut(**files, max_tokens=70, settings={"chunk_size": 16})(model)
    assert loss == pytest.approx(np.mean(one_pass_losses(model, IDS[:70])), rel=1e-5)


def test_the_model_and_random_numbers_are_unchanged(files):
    model = make("llama")
    model.train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    HeldOut(**files, max_tokens=70, settings={"chunk_size": 16})(model)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
