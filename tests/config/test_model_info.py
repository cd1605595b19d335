"""What is known of models before any weights are opened."""

import json

import pytest

from needlework.config.model_info import is_behind_api, max_positions, own_attention
from needlework.config.parsing.load import load_experiment

FINETUNE = {"data": "rows", "steps": 1, "sequence_length": 128}


@pytest.fixture
def experiment(tmp_path):
    def build(config=None, **models):
        (tmp_path / "config.json").write_text(
            json.dumps(config or {"max_position_embeddings": 256})
        )
        (tmp_path / "tokenizer.json").write_text("{}")
        return load_experiment(
            {
                "experiment": "x",
                "models": {"base": {"path": str(tmp_path)}, **models},
                "systems": {"s": {"model": "base"}},
                "finetune_data": {"rows": {"type": "passkey", "examples": 2, "length": 128}},
                "tasks": {"passkey": {"type": "passkey"}},
                "lengths": [128],
            }
        )

    return build


def test_positions_come_from_the_nearest_model_that_says_so(experiment):
    found = experiment(
        tuned={"base": "base", "finetune": FINETUNE},
        long={"base": "base", "finetune": FINETUNE, "allow_extrapolation": True},
        infini={"base": "tuned", "finetune": FINETUNE, "attention": {"type": "infini"}},
        again={"base": "infini", "finetune": FINETUNE},
        api={"api": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": "base"},
    )
    positions = {name: max_positions(found, name) for name in found.models}
    assert positions == {
        "base": 256,
        "tuned": 256,
        "long": None,
        "infini": None,
        "again": None,
        "api": None,
    }


def test_own_attention_names_the_model_that_was_converted(experiment):
    found = experiment(
        infini={"base": "base", "finetune": FINETUNE, "attention": {"type": "infini"}},
        again={"base": "infini", "finetune": FINETUNE},
    )
    assert own_attention(found, "base") is None
    assert own_attention(found, "again") == ("infini", "infini")
    saved = experiment({"needlework_attention": "infini", "max_position_embeddings": 256})
    assert own_attention(saved, "base") == ("base", "infini")
    assert max_positions(saved, "base") is None


def test_a_model_that_does_not_exist_is_not_behind_an_api(experiment):
    assert not is_behind_api(experiment(), "nothing")


def test_ancestors_end_at_a_cycle_or_a_missing_name(experiment):
    found = experiment(
        tuned={"base": "base", "finetune": FINETUNE}, again={"base": "tuned", "finetune": FINETUNE}
    )
    assert [name for name, _ in found.ancestors("again")] == ["again", "tuned", "base"]
    again = found.models["again"]
    cyclic = {"again": again, "tuned": again.model_copy(update={"base": "again"})}
    cut = found.model_copy(update={"models": cyclic})
    assert [name for name, _ in cut.ancestors("again")] == ["again", "tuned"]
    cut = found.model_copy(update={"models": {"again": again}})
    assert [name for name, _ in cut.ancestors("again")] == ["again"]
