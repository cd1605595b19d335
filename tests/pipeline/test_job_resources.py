"""What jobs reserve: when there is a plan, what it is remembered by, what stands without one."""

import json
import shutil
from pathlib import Path

import pytest
from support.paths import TINY

from needlework.config.parsing.load import load_experiment
from needlework.pipeline.job_resources import CACHE, JobResources

JOB = ("evaluate", "dense", 512)
PLANNED = {"mem_bytes": 77 * 10**9 + 1, "seconds": 6000.0, "gpus": 4}
FLOOR_MB, FLOOR_MINUTES = 4000, 120


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's folder, to be changed; its weights are never read."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(TINY, tmp_path / "model")


def reservations(path: Path | str, **changed) -> JobResources:
    given = {
        "experiment": "small",
        "models": {"base": {"path": str(path), "allow_extrapolation": True}},
        "systems": {"dense": {"model": "base"}},
        "tasks": {"passkey": {"type": "passkey"}},
        "lengths": [512],
    }
    return JobResources(load_experiment({**given, **changed}))


def remember(reserved: JobResources, plan: dict) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / f"plan-{reserved._key()}.json").write_text(json.dumps(plan))


def enlarge(model: Path, size: int = 2**26 + 1) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(size)


def test_a_job_reserves_its_floor_or_what_is_planned(model: Path):
    enlarge(model)
    plan = {"evaluate": {"dense": {"512": PLANNED}}}
    reserved = reservations(model)
    remember(reserved, plan)
    assert reserved.mem_mb(FLOOR_MB, *JOB) == 77_001
    assert reserved.mem_mb(80_000, *JOB) == 80_000
    # Three times 100 minutes: weights are still to be read, and others use the machine.
    assert reserved.minutes(FLOOR_MINUTES, *JOB) == 300
    assert reserved.minutes(301, *JOB) == 301
    assert reserved.gpus(*JOB) == 0
    elsewhere = "evaluate", "dense", 1024
    assert reserved.mem_mb(FLOOR_MB, *elsewhere) == FLOOR_MB
    assert reserved.minutes(FLOOR_MINUTES, *elsewhere) == FLOOR_MINUTES
    with_gpu = reservations(model, device="h100-80gb")
    remember(with_gpu, plan)
    assert with_gpu.gpus(*JOB) == 4
    # Of what could not be reckoned all that is known is that it runs on one.
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
    reserved = reservations(model, lengths=[512, length], streams=streams)
    remember(reserved, {"evaluate": {"dense": {"512": PLANNED}}})
    assert reserved.mem_mb(FLOOR_MB, *JOB) == (77_001 if is_planned else FLOOR_MB)


def test_a_plan_is_remembered_by_all_that_it_is_made_of(model: Path):
    config = (model / "config.json").read_text()
    keys = [
        reservations(model, **changed)._key()
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
    keys.append(reservations(model)._key())
    assert len(set(keys)) == len(keys)
    (model / "config.json").write_text(config)
    assert reservations(model, depths=[0, 50])._key() == keys[0]


def test_what_the_hub_did_not_give_is_planned_again(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    enlarge(model)
    models = {"base": {"path": str(model)}, "far": {"path": "nobody/nothing"}}
    systems = {"dense": {"model": "base"}, "far": {"model": "far"}}
    reserved = reservations(model, models=models, systems=systems)
    assert reserved.mem_mb(1, *JOB) > 1
    assert reserved.mem_mb(1, "evaluate", "far", 512) == 1
    assert not CACHE.exists()


def test_a_tokenizer_of_an_api_is_not_waited_for(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    enlarge(model)
    models = {"base": {"path": str(model)}, "far": {"path": "nobody/nothing"}}
    models["remote"] = {"api": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": "far"}
    systems = {"dense": {"model": "base"}, "remote": {"model": "remote"}}
    reserved = reservations(model, models=models, systems=systems)
    assert reserved.mem_mb(1, *JOB) > 1
    assert len(list(CACHE.iterdir())) == 1
