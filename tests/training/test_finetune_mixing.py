"""Fine-tuning on mixtures of rows and text."""

import polars as pl
import pytest
import torch
from support.toy_training import PROSE, ROWS, characters, finetuned, llama, product, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from needlework.config.attention.infini import Infini
from needlework.config.training import FinetuneStage
from needlework.models.convert import convert
from needlework.training import finetune as finetuning
from needlework.training.finetune import encode, finetune

pytestmark = pytest.mark.slow

MIXED = {"toy": 3.0, "prose": 1.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def losses(model, rows, config, seed=0):
    return finetune(model, characters(), rows, config, seed)[0]["loss"].to_list()


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
