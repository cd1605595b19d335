"""Mixtures of rows and text: which rows are drawn, and which tokens the loss covers."""

from collections import Counter
from itertools import islice

import polars as pl
import pytest
import torch
from support.toy_training import PROSE, ROWS, characters, finetuned, llama, product, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from needlework.config.attention import Infini
from needlework.config.training import FinetuneStage
from needlework.models.convert import convert
from needlework.training import finetune as finetuning
from needlework.training import sliced_loss
from needlework.training.data_order import cycle_shuffled, mix_batches
from needlework.training.finetune import answer_loss, collate, encode, finetune

MIXED = {"toy": 3.0, "prose": 1.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def losses(model, rows, config, seed=0):
    return finetune(model, characters(), rows, config, seed)[0]["loss"].to_list()


def test_weights_decide_the_table_and_each_table_has_its_own_order():
    orders = [cycle_shuffled(range(5), generator(1)), cycle_shuffled(range(5, 8), generator(2))]
    batches = mix_batches(orders, [3, 1], 4, generator())
    drawn = [n for batch in islice(batches, 2000) for n in batch]
    by_table = [[n for n in drawn if n < 5], [n for n in drawn if n >= 5]]
    # 8000 draws: five standard deviations are 0.024.
    assert len(by_table[0]) / len(drawn) == pytest.approx(0.75, abs=0.024)
    for numbers, table in zip(by_table, [range(5), range(5, 8)], strict=True):
        epochs = [numbers[i : i + len(table)] for i in range(0, len(numbers), len(table))]
        assert all(sorted(epoch) == [*table] for epoch in epochs[:-1])
        assert len(Counter(map(tuple, epochs[:-1]))) > 1


@pytest.fixture
def drawn(monkeypatch):
    """Row numbers that a recipe trains on, in order, without training."""
    seen = []

    def train(model, batches, config, **_):
        seen[:] = [number for batch in batches for number in batch["row"].tolist()]

    def row_numbers(rows, seed=5, **changes):
        finetune(llama(), characters(), rows, recipe(**changes), seed)
        return list(seen)

    monkeypatch.setattr(finetuning, "train", train)
    return row_numbers


def test_single_table_order_does_not_depend_on_weights(drawn):
    order = generator(5)
    expected = [n for _ in range(3) for n in torch.randperm(4, generator=order).tolist()]
    assert drawn(ROWS, steps=6) == expected
    assert drawn({"toy": ROWS}, steps=6, data={"toy": 2.0}) == expected


def test_rows_of_all_tables_are_numbered_consecutively(drawn):
    numbers = drawn({"toy": ROWS, "prose": PROSE}, steps=200, data=MIXED)
    # 400 draws of prose's rows 0 to 3 and toy's 4 to 7: five standard deviations are 0.11.
    assert set(numbers) == set(range(8))
    assert sum(n >= 4 for n in numbers) / 400 == pytest.approx(0.75, abs=0.11)


def test_single_name_with_a_weight_equals_the_plain_name():
    config = recipe(steps=9)
    assert losses(llama(), ROWS, config) == losses(
        llama(), {"toy": ROWS, "prose": PROSE}, recipe(steps=9, data={"toy": 0.5})
    )
    together = recipe(steps=9, data=MIXED)
    tables = {"toy": ROWS, "prose": PROSE}
    assert losses(llama(), tables, together) != losses(llama(), ROWS, config)
    # The order of names does not matter.
    reversed_names = recipe(steps=9, data=dict(reversed(MIXED.items())))
    assert losses(llama(), dict(reversed(tables.items())), reversed_names) == losses(
        llama(), tables, together
    )


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


def test_gradient_accumulation_does_not_change_the_loss_of_mixed_data():
    def losses_in(parts):
        config = recipe(steps=6, batch_size=4, data=MIXED, gradient_accumulation_steps=parts)
        model = convert(llama(), Infini(segment_length=4, segment_alignment="end"))
        return losses(model, {"toy": ROWS, "prose": PROSE}, config)

    assert losses_in(4) == pytest.approx(losses_in(1), rel=1e-5)


def test_model_learns_text():
    config = recipe(data="prose", steps=150, batch_size=4, learning_rate=1e-2)
    by_step = losses(llama(), PROSE, config)
    assert by_step[-1] < 0.5 < 2.0 < by_step[0]


def test_each_table_needs_rows_for_each_stage():
    stage = FinetuneStage(steps=1, sequence_length=9, batch_size=1)
    config = recipe(data=MIXED, curriculum=[stage])
    with pytest.raises(ValueError, match="no row of prose has 1 to 9 tokens, but the stage has 1"):
        losses(llama(), {"toy": ROWS, "prose": PROSE}, config)


def test_errors_name_the_table_of_a_row():
    tables = {"toy": ROWS, "prose": PROSE}
    with pytest.raises(ValueError, match="row 1 of prose has 16 tokens including answer and end-"):
        losses(llama(), tables, recipe(data=MIXED, sequence_length=15))
    with pytest.raises(ValueError, match="row 0 of toy contains token 16, but the model has 14 e"):
        losses(llama(vocab_size=14), tables | {"prose": PROSE[:1]}, recipe(data=MIXED))


def test_encoded_text_stays_in_arrays(tokenizer):
    (prompt, answer), *_ = encode(tokenizer, PROSE, 32)
    assert (prompt.dtype, answer.dtype) == (finetuning.np.int32, finetuning.np.int32)


def test_fine_tuned_dense_model_is_an_ordinary_checkpoint(tmp_path):
    """It opens and generates with transformers alone."""
    changes = {"steps": 150, "batch_size": 4, "learning_rate": 1e-2, "curriculum": []}
    checkpoints = finetuned(
        tmp_path, 0.0, None, balance_factor_learning_rate=None, data=MIXED, **changes
    )
    _, metrics = product(checkpoints)
    assert metrics["loss"][-1] < 0.5
    model = AutoModelForCausalLM.from_pretrained(checkpoints.product)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.product)
    assert type(model).__module__.startswith("transformers.")
    for prompt, answer in ROWS.select("prompt", "answer").iter_rows():
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.convert_ids_to_tokens(output.tolist()) == [*answer, "<eos>"]
    assert pl.read_parquet(checkpoints.product / "metrics.parquet").equals(metrics)
