"""Warnings about valid experiments that are probably mistakes."""

import json
import shutil
from pathlib import Path

import pytest
from support.paths import TINY

from needlework.cli.warnings import has_chat_template, warnings
from needlework.config.parsing.load import load_experiment


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    folder = shutil.copytree(TINY, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


def warn(model: dict, task: dict | None = None, **keys) -> list[str]:
    experiment = {
        "experiment": "trial",
        "models": {"m": model},
        "systems": {"dense": {"model": "m"}},
        "tasks": {"passkey": {"type": "passkey", **(task or {})}},
        "lengths": [512],
        **keys,
    }
    return list(warnings(load_experiment(experiment)))


def test_a_chat_model_without_its_template_is_reported(chat_model):
    (line,) = warn({"path": str(chat_model)})
    assert line.startswith("models.m: the checkpoint has a chat template that prompts do not use")
    assert "write `chat_template: true`" in line


@pytest.mark.parametrize("value", [True, False])
def test_an_explicit_chat_template_is_a_decision(chat_model, value):
    assert warn({"path": str(chat_model), "chat_template": value}) == []


def test_a_template_is_found_in_either_file(chat_model):
    assert has_chat_template(chat_model)
    (chat_model / "chat_template.jinja").unlink()
    assert not has_chat_template(chat_model)
    config = json.loads((chat_model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ messages }}"
    (chat_model / "tokenizer_config.json").write_text(json.dumps(config))
    assert has_chat_template(chat_model)
    (chat_model / "tokenizer_config.json").write_text("not JSON")
    assert not has_chat_template(chat_model)


@pytest.mark.parametrize(
    ("stored", "asked", "warned"),
    [
        ({"torch_dtype": "bfloat16", "dtype": None}, "float16", True),
        ({"torch_dtype": "float16", "dtype": "bfloat16"}, "float16", True),
        ({"torch_dtype": "bfloat16", "dtype": "float32"}, "float16", False),
        ({"dtype": "bfloat16"}, "bfloat16", False),
        ({"dtype": "bfloat16"}, "float32", False),
    ],
)
def test_a_dtype_that_overflows_is_reported(tmp_path, stored, asked, warned):
    model = shutil.copytree(TINY, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | stored))
    lines = warn({"path": str(model), "dtype": asked})
    assert lines == warned * [
        "models.m.dtype: float16 cannot hold the largest values of bfloat16, in which the "
        "checkpoint is stored; write dtype: bfloat16"
    ]


@pytest.mark.parametrize(("limit", "warned"), [(256, True), (512, False), (10**30, False)])
def test_lengths_past_the_limit_of_the_tokenizer_are_reported(tmp_path, limit, warned):
    model = shutil.copytree(TINY, tmp_path / "m")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["model_max_length"] = limit
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    lines = warn({"path": str(model)})
    assert len(lines) == warned
    assert all("tokenizer's model_max_length is 256" in line for line in lines)


def test_fewer_samples_than_depths_are_reported():
    (line,) = warn({"path": str(TINY)}, samples=4)
    assert line == (
        "depths: 4 samples at 11 depths leave cells of the heatmap empty; write `depths: "
        "{linear: 4}`, or at least `samples: 11`"
    )
    assert warn({"path": str(TINY)}, samples=11) == []
    assert warn({"path": str(TINY)}, samples=4, depths="uniform") == []


def test_depths_of_a_task_replace_those_of_the_experiment():
    (line,) = warn({"path": str(TINY)}, {"depths": [0, 50, 100]}, samples=2)
    assert line.startswith("tasks.passkey.depths: 2 samples at 3 depths")
    assert warn({"path": str(TINY)}, {"depths": [50]}, samples=4) == []


def test_streams_of_systems_without_a_likelihood_are_reported():
    walk = {"type": "sketchwalk", "block_size": 16}
    reader = {"model": "m", "attention": walk}
    stream = {"tokens": 100, "systems": {"walk": reader}}
    model = {"path": str(TINY)}
    (line,) = warn(model, samples=11, streams={"text": stream})
    assert line.startswith("streams.text: system `walk` (sketchwalk) lets later tokens affect")
    assert "write `choose: causal`" in line
    walk["choose"] = "causal"
    assert warn(model, samples=11, streams={"text": stream}) == []
