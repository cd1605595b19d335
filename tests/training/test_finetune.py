import itertools

import polars as pl
import pytest
import torch
from support.toy_training import ROWS, llama, recipe
from transformers import PreTrainedTokenizerFast

from needlework.config.attention.infini import Infini
from needlework.config.training import FinetuneStage
from needlework.models.convert import convert
from needlework.training.finetune import answer_loss, collate, encode, finetune, parameter_groups


def test_prompt_and_answer_are_encoded_separately(tokenizer):
    prompt, answer = encode(tokenizer, ROWS, 32)[2]
    assert tokenizer.convert_ids_to_tokens(prompt) == ["<bos>", *"f6 g7 f"]
    assert tokenizer.convert_ids_to_tokens(answer) == [*" 66", "<eos>"]


def test_loss_is_the_mean_over_answer_tokens_of_unpadded_rows(tokenizer):
    model = llama().eval()
    rows = encode(tokenizer, ROWS, 32)
    losses = []
    for prompt, answer in rows:
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        losses += [-logits[len(prompt) + i - 1, token] for i, token in enumerate(answer)]
    batch = collate(rows, pad=0)
    got = answer_loss(model, batch, batch)
    torch.testing.assert_close(got, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


def test_infini_loss_follows_the_drawn_alignment(tokenizer):
    model = convert(llama(), Infini(segment_length=4, segment_alignment="end")).eval()
    rows = encode(tokenizer, ROWS, 32)
    offsets = torch.tensor([0, 1, 2, 3])
    losses = []
    for (prompt, answer), offset in zip(rows, offsets, strict=True):
        ids = torch.tensor([prompt + answer])
        logits = model(ids, use_cache=False, segment_offset=offset[None]).logits[0].log_softmax(-1)
        losses += [-logits[len(prompt) + i - 1, token] for i, token in enumerate(answer)]
    batch = collate(rows, 0, lambda lengths: offsets)
    got = answer_loss(model, batch, batch)
    torch.testing.assert_close(got, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


def test_gates_have_their_own_rate_and_no_weight_decay():
    model = convert(llama(), Infini(segment_length=4))
    config = recipe(balance_factor_learning_rate=0.05, weight_decay=0.3)
    matrices, vectors, gates = parameter_groups(model, config)
    assert (matrices["lr"], matrices["weight_decay"]) == (1e-3, 0.3)
    assert (vectors["lr"], vectors["weight_decay"]) == (1e-3, 0.0)
    assert (gates["lr"], gates["weight_decay"]) == (0.05, 0.0)
    assert [id(p) for p in gates["params"]] == [id(g.balance_factors) for g in model.gates]
    everything = [p for group in (matrices, vectors, gates) for p in group["params"]]
    assert len(everything) == len({id(p) for p in everything}) == len(list(model.parameters()))
    assert len(parameter_groups(llama(), recipe())) == 2


@pytest.mark.slow
def test_model_learns_and_metrics_record_the_gates(tokenizer):
    model = convert(llama(), Infini(segment_length=6, balance_act_type="sigmoid"))
    config = recipe(steps=60, batch_size=4, learning_rate=1e-2, balance_factor_learning_rate=0.05)
    metrics, measurements = finetune(model, tokenizer, ROWS, config, seed=0)
    assert metrics["loss"][-1] < 0.05 < 1.0 < metrics["loss"][0]
    assert metrics["step"].to_list() == measurements["step"].to_list()
    for layer, gate in enumerate(model.gates):
        for head, beta in enumerate(gate.balance_factors.tolist()):
            values = metrics[f"gate_layer{layer}_head{head}"]
            assert values[-1] == pytest.approx(torch.tensor(beta).sigmoid().item())
            assert abs(values[-1] - 0.5) > 1e-3
    prompt = tokenizer(ROWS["prompt"][1], return_tensors="pt").input_ids
    output = model.generate(prompt, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.convert_ids_to_tokens(output.tolist()) == [" ", "4", "<eos>"]


def test_seed_determines_all_random_choices(tokenizer):
    def losses(seed):
        model = convert(llama(), Infini(segment_length=4, segment_alignment="end"))
        return finetune(model, tokenizer, ROWS, recipe(), seed)[0]["loss"].to_list()

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_curriculum_draws_short_rows_first(tokenizer):
    short = FinetuneStage(steps=2, sequence_length=11, batch_size=3)
    config = recipe(curriculum=[short], steps=2, batch_size=1)
    metrics, _ = finetune(llama(), tokenizer, ROWS, config, seed=0)
    # Rows of 8 + 3, 11 + 3, 8 + 4 and 11 + 3 tokens: one of at most 11.
    seen = metrics["tokens"].to_list()
    assert seen[:2] == [33, 66]
    assert all(later - earlier >= 12 for earlier, later in itertools.pairwise(seen[1:]))
    with pytest.raises(ValueError, match="no row has 1 to 5 tokens"):
        finetune(
            llama(),
            tokenizer,
            ROWS,
            recipe(curriculum=[FinetuneStage(steps=1, sequence_length=5, batch_size=1)]),
            seed=0,
        )


def test_invalid_input_is_a_clear_error(tokenizer):
    with pytest.raises(ValueError, match="sequence_length: row 1 has 14 tokens"):
        finetune(llama(), tokenizer, ROWS, recipe(sequence_length=13), seed=0)
    with pytest.raises(ValueError, match="Infini gates, but this llama model has none"):
        finetune(llama(), tokenizer, ROWS, recipe(balance_factor_learning_rate=0.1), seed=0)
    with pytest.raises(ValueError, match="segment_alignment: random applies to Infini models"):
        finetune(llama(), tokenizer, ROWS, recipe(segment_alignment="random"), seed=0)
    with pytest.raises(
        ValueError, match="row 0 contains token 16, but the model has 10 embeddings"
    ):
        finetune(llama(vocab_size=10), tokenizer, ROWS, recipe(), seed=0)
    other_tokenizer = ROWS.with_columns(context_length=pl.Series([11, 14, 12, 40]))
    with pytest.raises(ValueError, match="row 3 was generated with 40 tokens, but now has 14: the"):
        finetune(llama(), tokenizer, other_tokenizer, recipe(), seed=0)
    without_eos = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no eos_token"):
        finetune(llama(), without_eos, ROWS, recipe(), seed=0)
