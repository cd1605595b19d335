"""What jobs reserve, with and without a plan, and when a cached plan is used."""

import json
import shutil
from pathlib import Path

import pytest
from support.paths import TINY

from needlework.config.parsing.load import load_experiment
from needlework.pipeline.job_resources import CACHE, JobResources

pytestmark = pytest.mark.slow

JOB = ("evaluate", "dense")
PLANNED = {"mem_bytes": 77 * 10**9 + 1, "seconds": 6000.0, "gpus": 4}
LEAST_MB, LEAST_MINUTES = 4000, 120


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a checkpoint to change; its weights are never read."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(TINY, tmp_path / "model")


def resources_of(path: Path | str, **changed) -> JobResources:
    given = {
        "experiment": "small",
        "models": {"base": {"path": str(path), "allow_extrapolation": True}},
        "systems": {"dense": {"model": "base"}},
        "tasks": {"passkey": {"type": "passkey"}},
        "lengths": [512],
    }
    return JobResources(load_experiment({**given, **changed}))


def cache_plan(resources: JobResources, plan: dict) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / f"plan-{resources._key()}.json").write_text(json.dumps(plan))


def enlarge(model: Path, size: int = 2**26 + 1) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(size)


def test_a_job_reserves_the_larger_of_its_rule_and_the_plan(model: Path):
    enlarge(model)
    plan = {"evaluate": {"dense": PLANNED}}
    resources = resources_of(model)
    cache_plan(resources, plan)
    assert resources.mem_mb(LEAST_MB, *JOB) == 77_001
    assert resources.mem_mb(80_000, *JOB) == 80_000
    # Three times the planned 100 minutes.
    assert resources.minutes(LEAST_MINUTES, *JOB) == 300
    assert resources.minutes(301, *JOB) == 301
    assert resources.gpus(*JOB) == 0
    elsewhere = "evaluate", "other"
    assert resources.mem_mb(LEAST_MB, *elsewhere) == LEAST_MB
    assert resources.minutes(LEAST_MINUTES, *elsewhere) == LEAST_MINUTES
    with_gpu = resources_of(model, device="h100-80gb")
    cache_plan(with_gpu, plan)
    assert with_gpu.gpus(*JOB) == 4
    # A job without a plan runs on one GPU.
    assert with_gpu.gpus(*elsewhere) == 1


@pytest.mark.parametrize(
    ("size", "length", "tokens", "is_planned"),
    [
        (2**26, 2**14, 2**17, False),
        (2**26 + 1, 2**14, 2**17, True),
        (2**26, 2**14 + 1, 2**17, True),
        (2**26, 2**14, 2**17 + 1, True),
        (0, 2**14, 2**17, True),
    ],
)
def test_small_weights_at_short_lengths_are_not_planned(
    model: Path, size: int, length: int, tokens: int, is_planned: bool
):
    enlarge(model, size)
    streams = {"long": {"tokens": tokens, "chunk_size": 64}}
    resources = resources_of(model, lengths=[512, length], streams=streams)
    cache_plan(resources, {"evaluate": {"dense": PLANNED}})
    assert resources.mem_mb(LEAST_MB, *JOB) == (77_001 if is_planned else LEAST_MB)


def test_the_cache_key_covers_everything_the_plan_depends_on(model: Path):
    config = (model / "config.json").read_text()
    keys = [
        resources_of(model, **changed)._key()
        for changed in (
            {},
            {"device": "h100-80gb"},
            {"lengths": [1024]},
            {"samples": 9},
            {"tasks": {"passkey": {"type": "passkey", "max_new_tokens": 99}}},
            {"models": {"base": {"path": str(model), "dtype": "bfloat16"}}},
        )
    ]
    (model / "config.json").write_text(config.replace("}", " }"))
    keys.append(resources_of(model)._key())
    assert len(set(keys)) == len(keys)
    (model / "config.json").write_text(config)
    assert resources_of(model, depths=[0, 50])._key() == keys[0]


def test_a_plan_without_a_hub_model_is_not_cached(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    enlarge(model)
    models = {"base": {"path": str(model)}, "far": {"path": "nobody/nothing"}}
    systems = {"dense": {"model": "base"}, "far": {"model": "far"}}
    resources = resources_of(model, models=models, systems=systems)
    assert resources.mem_mb(1, *JOB) > 1
    assert resources.mem_mb(1, "evaluate", "far") == 1
    assert not CACHE.exists()


def test_a_plan_without_the_tokenizer_of_an_api_is_cached(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    enlarge(model)
    models = {"base": {"path": str(model)}, "far": {"path": "nobody/nothing"}}
    models["remote"] = {"api": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": "far"}
    systems = {"dense": {"model": "base"}, "remote": {"model": "remote"}}
    resources = resources_of(model, models=models, systems=systems)
    assert resources.mem_mb(1, *JOB) > 1
    assert len(list(CACHE.iterdir())) == 1
