import json
from copy import deepcopy

import pytest
import yaml
from jsonschema import Draft202012Validator
from support.paths import ROOT

from needlework.config.reference import reference
from needlework.config.schema import experiment_schema

SHIPPED = ["config.yaml", *(f"config/{path.name}" for path in (ROOT / "config").glob("*.yaml"))]

GOOD = {
    "experiment": "trial",
    "models": {
        "base": {"path": "checkpoint"},
        "tuned": {"base": "base", "finetune": {"data": "keys", "learning_rate": 1}},
        "made": {
            "pretrain": {"stages": [{"length": 64, "rows": 1, "steps": 1, "exercises": ["recall"]}]}
        },
    },
    "finetune_data": {"keys": {"type": "passkey"}},
    "systems": {
        "dense": {"model": "base"},
        "walk": {"model": "base", "attention": {"type": "sketchwalk", "density": 0.25}},
    },
    "baseline": None,
    "tasks": {"passkey": {"type": "passkey", "digits": 5}},
    "lengths": [512],
}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = experiment_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_committed_schema_is_current():
    committed = json.loads((ROOT / "config/experiment.schema.json").read_text())
    assert committed == experiment_schema(), (
        "run: needlework schema > config/experiment.schema.json"
    )


@pytest.mark.parametrize("file", SHIPPED)
def test_shipped_experiments_validate(validator, file):
    assert list(validator.iter_errors(yaml.safe_load((ROOT / file).read_text()))) == []


def test_a_right_experiment_validates(validator):
    assert list(validator.iter_errors(GOOD)) == []


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("sampels",), 6),
        (("samples",), "6"),
        (("samples",), 0),
        (("lengths",), 512),
        (("lengths",), []),
        (("depths",), [101]),
        (("experiment",), "../trial"),
        (("baseline",), ["dense"]),
        (("models", "base"), "checkpoint"),
        (("models", "base", "pth"), "checkpoint"),
        (("models", "base", "base"), "tuned"),
        (("models", "base", "dtype"), "float8"),
        (("models", "tuned", "finetune", "learning_rate"), "1e-3"),
        (("models", "tuned", "finetune", "steps"), 0),
        (("models", "made", "pretrain", "stages", 0, "exercises"), ["recal"]),
        (("systems", "in fini"), {"model": "base"}),
        (("systems", "x" * 65), {"model": "base"}),
        (("systems", "walk", "attention", "type"), "sketchwlk"),
        (("systems", "walk", "attention", "density"), 1.5),
        (("systems", "walk", "attention", "density"), 0),
        (("tasks", "a/b"), {"type": "passkey"}),
        (("tasks", "passkey", "digits"), 40),
        (("finetune_data", "keys", "digits"), []),
    ],
    ids=str,
)
def test_a_wrong_experiment_does_not_validate(validator, where, value):
    wrong = deepcopy(GOOD)
    part = wrong
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    assert not validator.is_valid(wrong)


@pytest.mark.parametrize("key", ["experiment", "models", "systems", "tasks", "lengths"])
def test_what_is_required_may_not_be_missing(validator, key):
    assert not validator.is_valid({k: v for k, v in GOOD.items() if k != key})


def test_the_reference_has_a_table_of_every_section():
    page = reference()
    for name in (
        "FreeNeedle",
        "NiahTemplates",
        "ThoughtFormat",
        "RopeScaling",
        "Price",
        "Haystack",
    ):
        assert page.count(f"\n### {name}\n") == 1
    tasks = page.split("\n## Tasks\n")[1].split("\n## ")[0]
    assert "\n### VariableTrackingTemplates\n" in tasks
