"""Rows and text, mixed: what is drawn, and what the loss is on."""

from collections import Counter
from itertools import islice

import polars as pl
import pytest
import torch
from support.toy_training import PROSE, ROWS, characters, finetuned, llama, product, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from needlework.attention.methods.infini import convert
from needlework.config.attention import Infini
from needlework.config.training import FinetuneStage
from needlework.training import finetune as finetuning
from needlework.training import sliced_loss
from needlework.training.data_order import mix, shuffled
from needlework.training.finetune import answer_loss, collate, encode, finetune

MIXED = {"toy": 3.0, "prose": 1.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def losses(model, rows, config, seed=0):
    return finetune(model, characters(), rows, config, seed)[0]["loss"].to_list()


def test_rows_are_drawn_by_their_weights_and_each_table_has_an_order_of_its_own():
    orders = [shuffled(range(5), generator(1)), shuffled(range(5, 8), generator(2))]
    drawn = [n for batch in islice(mix(orders, [3, 1], 4, generator()), 2000) for n in batch]
    own = [[n for n in drawn if n < 5], [n for n in drawn if n >= 5]]
    # 8000 draws: five standard deviations are 0.024.
    assert len(own[0]) / len(drawn) == pytest.approx(0.75, abs=0.024)
    for numbers, table in zip(own, [range(5), range(5, 8)], strict=True):
        epochs = [numbers[i : i + len(table)] for i in range(0, len(numbers), len(table))]
        assert all(sorted(epoch) == [*table] for epoch in epochs[:-1])
        assert len(Counter(map(tuple, epochs[:-1]))) > 1


@pytest.fixture
def drawn(monkeypatch):
    """Numbers of the rows that a recipe trains on, in order; nothing is trained."""
    seen = []

    def train(model, batches, config, **_):
        seen[:] = [number for batch in batches for number in batch["row"].tolist()]

    def found(rows, seed=5, **changes):
        finetune(llama(), characters(), rows, recipe(**changes), seed)
        return list(seen)

    monkeypatch.setattr(finetuning, "train", train)
    return found


def test_one_table_alone_is_shuffled_as_if_there_were_nothing_to_choose(drawn):
    order = generator(5)
    expected = [n for _ in range(3) for n in torch.randperm(4, generator=order).tolist()]
    assert drawn(ROWS, steps=6) == expected
    assert drawn({"toy": ROWS}, steps=6, data={"toy": 2.0}) == expected


def test_rows_of_all_tables_are_numbered_through(drawn):
    found = drawn({"toy": ROWS, "prose": PROSE}, steps=200, data=MIXED)
    # 400 draws of prose's rows 0 to 3 and toy's 4 to 7: five standard deviations are 0.11.
    assert set(found) == set(range(8))
    assert sum(n >= 4 for n in found) / 400 == pytest.approx(0.75, abs=0.11)


def test_one_name_is_the_same_however_it_is_written():
    config = recipe(steps=9)
    assert losses(llama(), ROWS, config) == losses(
        llama(), {"toy": ROWS, "prose": PROSE}, recipe(steps=9, data={"toy": 0.5})
    )
    together = recipe(steps=9, data=MIXED)
    tables = {"toy": ROWS, "prose": PROSE}
    assert losses(llama(), tables, together) != losses(llama(), ROWS, config)
    # The order in which names are written decides nothing.
    again = recipe(steps=9, data=dict(reversed(MIXED.items())))
    assert losses(llama(), dict(reversed(tables.items())), again) == losses(
        llama(), tables, together
    )


@pytest.mark.parametrize("most", [2**26, 24, 24 * 7], ids=["whole", "one", "some"])
@pytest.mark.parametrize("kind", ["llama", "infini"])
def test_loss_is_on_every_token_of_text_and_the_answers_of_rows(tokenizer, monkeypatch, kind, most):
    """In slices of one token, of some, or whole; gradients too."""
    monkeypatch.setattr(sliced_loss, "LOGITS_AT_ONCE", most)
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
    wanted = torch.stack(expected).mean()
    gradients = torch.autograd.grad(wanted, [*model.parameters()])
    batch = collate(rows, 0, None if offsets is None else lambda lengths: offsets)
    got = answer_loss(model, batch, batch)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    for one, other in zip(torch.autograd.grad(got, [*model.parameters()]), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_logits_of_a_slice_are_all_that_is_held(monkeypatch):
    monkeypatch.setattr(sliced_loss, "LOGITS_AT_ONCE", 3 * 24)
    model, made = llama(), []
    model.lm_head.register_forward_hook(lambda *call: made.append(call[2].shape[1]))
    batch = collate(encode(characters(), PROSE, 32)[1:2], 0)
    answer_loss(model, batch, batch).backward()
    # 15 targets in threes, once forward and once again for the gradients; one token is a probe.
    assert made == [1, *[3] * 10]


def test_parts_of_a_step_with_text_add_up_to_it():
    def found(parts):
        config = recipe(steps=6, batch_size=4, data=MIXED, gradient_accumulation_steps=parts)
        model = convert(llama(), Infini(segment_length=4, segment_alignment="end"))
        return losses(model, {"toy": ROWS, "prose": PROSE}, config)

    assert found(4) == pytest.approx(found(1), rel=1e-5)


def test_text_alone_is_learned():
    config = recipe(data="prose", steps=150, batch_size=4, learning_rate=1e-2)
    found = losses(llama(), PROSE, config)
    assert found[-1] < 0.5 < 2.0 < found[0]


def test_each_table_has_rows_for_each_stage():
    stage = FinetuneStage(steps=1, sequence_length=9, batch_size=1)
    config = recipe(data=MIXED, curriculum=[stage])
    with pytest.raises(ValueError, match="no row of prose has 1 to 9 tokens, for which 1 steps"):
        losses(llama(), {"toy": ROWS, "prose": PROSE}, config)


def test_bad_rows_are_told_with_their_table():
    tables = {"toy": ROWS, "prose": PROSE}
    with pytest.raises(ValueError, match="row 1 of prose has 16 tokens with its answer and end, m"):
        losses(llama(), tables, recipe(data=MIXED, sequence_length=15))
    with pytest.raises(ValueError, match="row 0 of toy has the token 16 and the model 14 embeddin"):
        losses(llama(vocab_size=14), tables | {"prose": PROSE[:1]}, recipe(data=MIXED))


def test_arrays_of_text_are_not_copied_into_lists(tokenizer):
    (prompt, answer), *_ = encode(tokenizer, PROSE, 32)
    assert (prompt.dtype, answer.dtype) == (finetuning.np.int32, finetuning.np.int32)


def test_a_fine_tuned_model_is_an_ordinary_checkpoint(tmp_path):
    """Dense: it opens, and goes on from a prompt, with transformers alone."""
    changes = {"steps": 150, "batch_size": 4, "learning_rate": 1e-2, "curriculum": []}
    done = finetuned(tmp_path, 0.0, None, balance_factor_learning_rate=None, data=MIXED, **changes)
    _, metrics = product(done)
    assert metrics["loss"][-1] < 0.5
    model = AutoModelForCausalLM.from_pretrained(done.product)
    tokenizer = AutoTokenizer.from_pretrained(done.product)
    assert type(model).__module__.startswith("transformers.")
    for prompt, answer in ROWS.select("prompt", "answer").iter_rows():
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        said = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.convert_ids_to_tokens(said.tolist()) == [*answer, "<eos>"]
    assert pl.read_parquet(done.product / "metrics.parquet").equals(metrics)
