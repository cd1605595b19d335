import pytest
import torch
from support.toy_training import ROWS, gates_config, llama

from needlework import apply
from needlework.config.attention.seer import Seer
from needlework.training.distill.gates import distill


@pytest.mark.slow
def test_gates_learn_and_the_model_does_not_change(tokenizer, tmp_path):
    model = llama().eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    stock = model.config._attn_implementation
    recipe = gates_config(steps=60, learning_rate=2e-2)
    gates, metrics, measurements = distill(model, tokenizer, ROWS, recipe, seed=0)
    assert metrics["loss"][-1] < 0.1 * metrics["loss"][0]
    assert measurements["step"].to_list() == metrics["step"].to_list() == list(range(1, 61))
    assert all(x.equal(before[name]) for name, x in model.state_dict().items())
    assert model.config._attn_implementation == stock
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    gates.save(tmp_path)
    ids = torch.arange(1, 22)[None]
    with apply(model, Seer(gates=str(tmp_path), block_size=3, density=0.5)) as handle:
        model.generate(ids, max_new_tokens=3, do_sample=False)
        assert handle.density().prefill < 0.8


def test_gradient_accumulation_does_not_change_the_loss(tokenizer):
    def metrics_of(parts):
        recipe = gates_config(steps=6, batch_size=4, gradient_accumulation_steps=parts)
        return distill(llama(), tokenizer, ROWS, recipe, seed=0)[1]

    whole, in_parts = metrics_of(1), metrics_of(4)
    for name in ("loss", "gradient_norm"):
        assert in_parts[name].to_list() == pytest.approx(whole[name].to_list(), rel=1e-4)


def test_gates_for_decode_only(tokenizer):
    gates, *_ = distill(llama(), tokenizer, ROWS, gates_config(stages=["decode"]), seed=0)
    assert not gates.prefill
    assert len(gates.decode) == 2


def test_seed_determines_all_random_choices(tokenizer):
    def losses(seed):
        # Fewer than available, so that the choice is random.
        recipe = gates_config(prefill_rows=2, decode_queries=2)
        return distill(llama(), tokenizer, ROWS, recipe, seed)[1]["loss"].to_list()

    torch.manual_seed(5)
    first = losses(1)
    torch.manual_seed(6)
    assert losses(1) == first
    assert losses(2) != first


def test_too_long_row_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="sequence_length: row 1 has 14 tokens"):
        distill(llama(), tokenizer, ROWS, gates_config(sequence_length=13), seed=0)
