"""The model card agrees with the tables."""

import polars as pl
import pytest

from needlework.config.training import Pretrain
from needlework.models.card import card


@pytest.mark.parametrize("start", ["induction", "random"])
def test_card_states_data_initialization_cost_accuracy_and_hashes(start):
    recipe = Pretrain(
        stages=[{"length": 64, "rows": 3, "steps": 7, "exercises": ["recall", "passkey"]}],
        start=start,
        held_out_words=0.25,
    )
    cell = {"task": "passkey", "metric": "all", "n": 40, "ci_low": 0.83, "ci_high": 0.99}
    summary = pl.DataFrame(
        [
            {**cell, "length": 2048, "depth_percent": None, "accuracy": 0.95},
            {**cell, "length": 512, "depth_percent": None, "accuracy": 1.0},
            {**cell, "length": 512, "depth_percent": 50.0, "accuracy": 0.123},
        ],
        schema_overrides={"depth_percent": pl.Float64},
    )
    text = card(
        "needlework-tiny",
        recipe.model_dump(mode="json"),
        summary,
        metrics=pl.DataFrame({"tokens": [10, 1344]}),
        measurements=pl.DataFrame({"seconds": [1.0, 61.6]}),
        hashes={"model.safetensors": "abc123"},
        versions={"seed": 42},
    )
    assert "| 64 | 3 | 7 | recall, passkey | 0% |" in text
    assert "1,344 tokens in 62 seconds" in text
    assert "25% of the key words were held out" in text
    assert ("initialized by hand, not at random" in text) == (start == "induction")
    short, long = "| passkey | 512 | 40 | 100.0% |", "| passkey | 2,048 | 40 | 95.0% | 83.0% to"
    assert 0 < text.index(short) < text.index(long)
    assert "No task is below 95% at any length." in text
    assert "12.3%" not in text, "the card omits rows of single depths"
    assert "| model.safetensors | `abc123` |" in text
    assert "| seed | 42 |" in text


def test_card_lists_tasks_and_lengths_below_the_target():
    recipe = Pretrain(stages=[{"length": 64, "rows": 1, "steps": 1, "exercises": ["recall"]}])
    row = {"task": "passkey", "metric": "all", "n": 10, "ci_low": 0.1, "ci_high": 0.9}
    summary = pl.DataFrame(
        [
            {**row, "length": 512, "depth_percent": None, "accuracy": 0.95},
            {**row, "length": 4096, "depth_percent": None, "accuracy": 0.9},
        ],
        schema_overrides={"depth_percent": pl.Float64},
    )
    training = pl.DataFrame({"tokens": [1], "seconds": [1.0]})
    text = card("m", recipe.model_dump(mode="json"), summary, training, training, {}, {})
    assert "**Below 95%:** passkey at 4,096 tokens (90.0%)." in text
