"""Sweeps of the thinking budget, a key of the model."""

import json
import re

import pytest
import yaml
from support.paths import TINY

from needlework.config.parsing.load import load_experiment, read_experiment

TEMPLATE = "{% if enable_thinking %}<think>{% endif %}{{ messages[-1].content }}"


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in TINY.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return {
        "experiment": "trial",
        "models": {"m": {"path": str(folder), "chat_template": True, "dtype": "bfloat16"}},
        "systems": {
            "dense": {"model": "m", "sweep": {"thinking_tokens": [0, 64, 256]}},
            "walk": {
                "model": "m",
                "attention": {"type": "sketchwalk"},
                "sweep": {"thinking_tokens": [64, 256], "top_k_blocks": [4, 8]},
            },
        },
        "tasks": {"passkey": {"type": "passkey"}},
        "lengths": [1024],
    }


def test_each_budget_is_a_system_with_its_own_model(config):
    experiment = load_experiment(config)
    budgets = {name: experiment.thinking_budget(name) for name in experiment.systems}
    assert budgets == {
        "dense_thinking_tokens0": 0,
        "dense_thinking_tokens64": 64,
        "dense_thinking_tokens256": 256,
        "walk_thinking_tokens64_top_k_blocks4": 64,
        "walk_thinking_tokens64_top_k_blocks8": 64,
        "walk_thinking_tokens256_top_k_blocks4": 256,
        "walk_thinking_tokens256_top_k_blocks8": 256,
    }
    copies = {f"m_thinking_tokens{budget}" for budget in (0, 64, 256)}
    assert set(experiment.models) == {"m", *copies}
    for name, budget in budgets.items():
        model = experiment.model_of(name)
        assert model.chat.thinking_tokens == budget
        assert model.model_dump(exclude={"thinking_tokens"}) == experiment.models["m"].model_dump(
            exclude={"thinking_tokens"}
        )
    assert experiment.systems["walk_thinking_tokens64_top_k_blocks8"].attention.top_k_blocks == 8
    assert {system.family for system in experiment.systems.values()} == {"dense", "walk"}


def test_budgets_of_a_server_are_swept_too(config):
    config["models"]["m"] = {"api": "http://localhost:1/v1", "model": "x"}
    config["length_unit"] = "characters"
    del config["systems"]["walk"]
    experiment = load_experiment(config)
    assert [experiment.thinking_budget(name) for name in experiment.systems] == [0, 64, 256]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("models", "m", "thinking_tokens"), 9, "thinking_tokens: is also set in models.m; remove"),
        (
            ("systems", "dense", "sweep", "thinking_tokens"),
            [64, -1],
            "systems.dense.sweep.thinking_tokens.1 = -1: write a number of at least 0",
        ),
        (
            ("systems", "dense", "sweep", "thinking_tokens"),
            [64, 64],
            "systems.dense.sweep.thinking_tokens.1 = 64: is a duplicate; remove it",
        ),
        (("models", "m", "dtype"), "bf16", "models.m.dtype = 'bf16'"),
        (
            ("systems", "dense", "model"),
            "n",
            "systems.dense.model = 'n': unknown model; write one of m",
        ),
        (
            ("models", "m_thinking_tokens64"),
            {"path": "x"},
            "creates a model `m_thinking_tokens64`, which already exists; rename one of them",
        ),
        (("models", "m"), {"base": "b", "finetune": {}}, "models.m has no thinking_tokens; sweep"),
        (("models", "m", "chat_template"), False, "systems.dense.sweep.thinking_tokens.1 = 64: "),
        (
            ("systems", "walk", "attention"),
            None,
            "systems.walk.sweep: needs an attention to vary; add one",
        ),
    ],
)
def test_errors_name_the_key_in_the_file(config, tmp_path, path, value, message):
    config = json.loads(json.dumps(config))
    *parents, key = path
    node = config
    for parent in parents:
        node = node[parent]
    node[key] = value
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"x\.yaml:\d+: ") as caught:
        read_experiment(tmp_path / "x.yaml")
    assert message in str(caught.value)
    places = re.findall(r"yaml:\d+: ([\w.]+)", str(caught.value))
    assert [
        place for place in places if place.split(".")[1] not in config[place.split(".")[0]]
    ] == []
