import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from support.families import config_of
from support.paths import TINY

from needlework.config.devices import devices
from needlework.config.parsing.load import load_experiment
from needlework.pipeline.job_resources import CACHE, JobResources
from needlework.planning.fit import devices_needed
from needlework.planning.job_resources import plan_jobs
from needlework.planning.plan import Models, plan
from needlework.planning.render import duration, size, totals, verdicts

pytestmark = pytest.mark.slow

GPU = devices()["h100-80gb"]


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A model of 1.2 billion parameters, as config.json and tokenizer without weights."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "large"
    folder.mkdir()
    shape = {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": True,
    }  # fmt: skip
    config_of("llama", **shape).save_pretrained(folder)
    shutil.copy(TINY / "tokenizer.json", folder)
    walk = {"type": "sketchwalk", "density": 0.2}
    return {
        "experiment": "planned",
        "models": {"large": {"path": str(folder), "dtype": "bfloat16"}},
        "systems": {"dense": {"model": "large"}, "walk": {"model": "large", "attention": walk}},
        "tasks": {"passkey": {"type": "passkey"}, "niah": {"type": "niah_single_1"}},
        "lengths": [4096, 131072],
        "samples": 5,
    }


def test_rows_follow_from_the_model_shape(experiment):
    result = plan(load_experiment(experiment), GPU)
    assert result.select("system", "length").rows() == [
        (system, length) for system in ("dense", "walk") for length in (4096, 131072)
    ]
    row = result.row(1, named=True)
    assert row["parameters"] == row["active_parameters"] == 1_235_814_400  # as published
    assert row["weight_bytes"] == 2 * row["parameters"]
    assert row["cache_bytes"] == pytest.approx(2 * 16 * 8 * 64 * 2 * 131072, rel=1e-4)
    assert row["prompts"] == 10
    assert row["prompt_tokens"] == 5 * (131072 - 10) + 5 * (131072 - 128)
    assert row["completion_tokens"] == 5 * (10 + 128)
    assert row["fits"]
    assert row["note"] is None
    pairs = 131072 * 131073 // 2
    assert row["attention_flops"] == 16 * 32 * 4 * 64 * pairs
    walk = result.row(3, named=True)
    assert 0.2 < walk["attention_flops"] / row["attention_flops"] < 0.4
    assert walk["cache_bytes"] > row["cache_bytes"]


def test_remedies_make_the_prompt_fit(experiment):
    experiment["models"]["large"]["dtype"] = "float32"
    experiment["systems"] = {"dense": {"model": "large"}}
    small = GPU.model_copy(update={"memory_bytes": 4 * 2**30})
    result = plan(load_experiment(experiment), small)
    rows = result.rows(named=True)
    assert not rows[0]["fits"]
    remedies = rows[0]["note"].split("; ")
    assert remedies[0] == "dtype: bfloat16"
    assert remedies[-1] == "2 devices (pp: 2)"
    assert "device_map: auto and cpu_offload: true (5 GiB of main memory)" in remedies
    # Activations of one layer exceed the device at the longer length unless prefilled in chunks.
    chunks = "17 devices (pp: 17 and prefill_chunk_tokens: 1024)"
    assert (rows[1]["fits"], rows[1]["devices"], rows[1]["note"]) == (False, None, chunks)
    stored = "dense: does not fit on small; 4,096 would with: dtype: bfloat16, or"
    assert list(verdicts(result, "small"))[1].startswith(stored)
    *_, line = verdicts(result.filter(pl.col("length") == 131072), "small")
    assert line == f"dense: does not fit on small; 131,072 would with: {chunks}"
    experiment["models"]["large"]["dtype"], experiment["lengths"] = "bfloat16", [4096]
    assert plan(load_experiment(experiment), small).row(0, named=True)["fits"]
    result = plan(load_experiment(experiment), GPU.model_copy(update={"memory_bytes": 2**26}))
    *_, line = verdicts(result, "tiny")
    assert line.endswith("no known single change makes 4,096 fit")


def test_a_kernel_without_n_x_n_masks_is_suggested_when_it_helps(experiment):
    folder = Path(experiment["models"]["large"]["path"])
    config_of("llama4_text", max_position_embeddings=2**17).save_pretrained(folder)
    experiment |= {"lengths": [2**15], "systems": {"dense": {"model": "large"}}}
    small = GPU.model_copy(update={"memory_bytes": 2 * 2**30})
    row = plan(load_experiment(experiment), small).row(0, named=True)
    # A mask in one byte, and its copy in bfloat16.
    assert row["activation_bytes"] > 3 * 2**30
    assert row["note"].split("; ")[0] == "attn_implementation: flex_attention"
    experiment["models"]["large"]["attn_implementation"] = "flex_attention"
    assert plan(load_experiment(experiment), small).row(0, named=True)["fits"]


def test_chunked_prefill_is_suggested_when_it_helps(experiment):
    experiment |= {"lengths": [2**17], "systems": {"dense": {"model": "large"}}}
    whole = plan(load_experiment(experiment), GPU).row(0, named=True)
    held = whole["weight_bytes"] + whole["cache_bytes"] + 600 * 2**20
    room = held + 3 * whole["activation_bytes"] // 4
    small = GPU.model_copy(update={"memory_bytes": room})
    advised = plan(load_experiment(experiment), small).row(0, named=True)
    assert "prefill_chunk_tokens: 8192" in advised["note"].split("; ")
    experiment["models"]["large"]["prefill_chunk_tokens"] = 8192
    chunked = plan(load_experiment(experiment), small).row(0, named=True)
    assert chunked["fits"]
    assert chunked["flops"] == whole["flops"]
    # Offloaded weights are fetched for each of 16 chunks.
    experiment["models"]["large"] |= {"device_map": "auto", "cpu_offload": True}
    tight = GPU.model_copy(update={"memory_bytes": held + chunked["activation_bytes"] - 10**9})
    result = plan(load_experiment(experiment), tight).row(0, named=True)
    more = result["prefill_seconds"] - chunked["prefill_seconds"]
    assert more == pytest.approx(16 * 10**9 / 2.5e10)


def test_lengths_beyond_the_positions_do_not_fit(experiment):
    experiment |= {"lengths": [4096, 200_000], "early_stopping": True}
    result = plan(load_experiment(experiment), GPU)
    assert result["fits"].to_list() == [True, False] * 2
    assert result["note"].to_list() == [None, "allow_extrapolation: true (it has 131,072)"] * 2
    experiment["models"]["large"]["allow_extrapolation"] = True
    assert plan(load_experiment(experiment), GPU)["fits"].to_list() == [True] * 4


def test_offloaded_weights_are_fetched_per_token_and_processes_split_the_work(experiment):
    experiment |= {"lengths": [4096], "systems": {"dense": {"model": "large"}}}
    few = {"memory_bytes": 27 * 10**8, "bytes_per_second": 1e11}
    small = GPU.model_copy(update=few)
    large = experiment["models"]["large"]
    result = []
    for keys in ({}, {"device_map": "auto", "cpu_offload": True}, {"tp": 2}):
        experiment["models"]["large"] = large | keys
        result.append(plan(load_experiment(experiment), small, advise=False).row(0, named=True))
    whole, offloaded, shared = result
    room = 27 * 10**8 - 600 * 2**20 - whole["peak_bytes"] + whole["weight_bytes"]
    fetching = (whole["weight_bytes"] - room) / 2.5e10
    assert offloaded["decode_seconds_per_token"] == pytest.approx(
        whole["decode_seconds_per_token"] + fetching
    )
    assert offloaded["prefill_seconds"] == pytest.approx(whole["prefill_seconds"] + fetching)
    assert shared["prefill_seconds"] == pytest.approx(whole["prefill_seconds"] / 2)
    assert shared["decode_seconds_per_token"] == pytest.approx(
        whole["decode_seconds_per_token"] / 2
    )


def test_a_split_model_fits_if_its_part_does(experiment):
    # Weights of 2.5 GB.
    small = GPU.model_copy(update={"memory_bytes": 27 * 10**8})
    experiment["lengths"] = [4096]
    for keys, fits in (({}, False), ({"tp": 2}, True), ({"pp": 2}, True), ({"dp": 2}, False)):
        experiment["models"]["large"].update({"tp": 1, "pp": 1, "dp": 1} | keys)
        experiment["systems"] = {"dense": {"model": "large"}}
        result = plan(load_experiment(experiment), small, advise=False)
        assert result["fits"].to_list() == [fits]
    offloaded = {"dp": 1, "device_map": "auto", "cpu_offload": True}
    experiment["models"]["large"].update(offloaded)
    assert plan(load_experiment(experiment), small, advise=False)["fits"].to_list() == [True]


def test_a_quantized_cache_takes_half_the_bytes(experiment):
    whole = plan(load_experiment(experiment), GPU)
    experiment["models"]["large"]["cache"] = "quantized"
    half = plan(load_experiment(experiment), GPU)
    # A scale for keys and for values of each layer.
    assert 2 * half["cache_bytes"][1] == whole["cache_bytes"][1] + 2 * 16 * 2 * 4


def test_api_models_are_planned_as_tokens_and_price(experiment):
    api = {"api": "http://localhost:1/v1", "model": "m", "tokenizer": "large"}
    price = {"prompt": 2.0, "completion": 8.0}
    experiment["models"]["far"] = api | {"thinking_tokens": 100, "price": price}
    experiment["models"]["free"] = api
    experiment["systems"] = {"far": {"model": "far"}, "free": {"model": "free"}}
    experiment["lengths"] = [4096]
    result = plan(load_experiment(experiment), GPU)
    far, free = result.rows(named=True)
    new = 5 * (10 + 128) + 10 * 100
    assert (far["prompt_tokens"], far["completion_tokens"]) == (5 * (2 * 4096 - 138), new)
    assert far["price_dollars"] == pytest.approx((2 * far["prompt_tokens"] + 8 * new) / 1e6)
    assert far["parameters"] is None
    assert free["price_dollars"] is None
    lines = list(verdicts(result, "here"))
    tokens = "40,270 and at most 1,690 tokens"
    assert lines[0].startswith(f"far: behind an API, {tokens}: at most $0.0941")
    assert lines[1].endswith("unknown price; write `price` in its model")
    assert "at most $0.0941 to APIs" in totals(result)
    assert plan_jobs(load_experiment(experiment))["evaluate"] == {}


def test_devices_split_weights_and_cache_but_not_activations(experiment):
    model = Models(load_experiment(experiment)).open("large")
    cost = model.cost(None, 131072, GPU)
    room = (cost.weight_bytes + cost.cache_bytes) // 3
    memory = room + cost.activation_bytes + 600 * 2**20 + 10**6
    assert devices_needed(cost, GPU.model_copy(update={"memory_bytes": memory})) == 3
    tiny = GPU.model_copy(update={"memory_bytes": cost.activation_bytes})
    assert devices_needed(cost, tiny) is None


def test_lengths_in_characters_become_fewer_tokens(experiment):
    experiment["length_unit"] = "characters"
    assert plan(load_experiment(experiment), GPU)["tokens"].to_list()[:2] == [1024, 32768]


def test_a_model_that_cannot_be_opened_is_planned_as_a_note(experiment):
    path = Path(experiment["models"]["large"]["path"]) / "config.json"
    path.write_text(json.dumps({"model_type": "of_tomorrow"}))
    result = plan(load_experiment(experiment), GPU)
    assert result["peak_bytes"].null_count() == 4
    assert "of_tomorrow" in result["note"][0]
    assert result["prompt_tokens"].null_count() == 0
    assert "no estimate" in next(verdicts(result, "here"))
    assert "device" not in totals(result)
    assert "largest peak" not in totals(result)


def test_jobs_reserve_the_plan_but_at_least_the_minimum_of_their_rule(experiment):
    experiment |= {
        "lengths": [4096],
        "device": "h100-80gb",
        "systems": {"dense": {"model": "large"}},
    }
    loaded = load_experiment(experiment)
    reserved = JobResources(loaded)
    weights = 2 * 1_235_814_400
    job = ("evaluate", "dense")
    # On the host: weights in transit, the process, and the GPU context.
    assert reserved.mem_mb(1000, *job) == -(-(weights + 1080 * 2**20) // 10**6)
    assert reserved.mem_mb(10**6, *job) == 10**6
    assert reserved.gpus(*job) == 1
    assert reserved.minutes(120, *job) == 120
    assert reserved.minutes(0, *job) <= 1
    kept = list(CACHE.glob("plan-*.json"))
    assert len(kept) == 1
    stored = json.loads(kept[0].read_text())
    # Another process reads the stored plan instead of planning again.
    stored["evaluate"]["dense"]["mem_bytes"] = 77 * 10**9
    kept[0].write_text(json.dumps(stored))
    assert JobResources(loaded).mem_mb(1000, *job) == 77_000
    experiment["models"]["large"]["dtype"] = "float32"
    changed = JobResources(load_experiment(experiment))
    assert changed.mem_mb(1000, *job) == pytest.approx(2 * weights / 1e6, rel=0.4)


def test_training_and_stream_jobs_are_planned(experiment):
    recipe = {"data": "rows", "steps": 100, "batch_size": 4, "sequence_length": 1024}
    experiment["finetune_data"] = {"rows": {"type": "passkey", "examples": 8, "length": 1024}}
    experiment["models"]["tuned"] = {"base": "large", "dtype": "float32", "finetune": recipe}
    experiment["streams"] = {"long": {"tokens": 100_000, "chunk_size": 1024}}
    result = plan_jobs(load_experiment(experiment))
    tuned = result["finetune"]["tuned"]
    # AdamW in float32: 16 bytes a parameter, and the activations of four rows.
    assert 16 * 1_235_814_400 < tuned["mem_bytes"] < 40 * 1_235_814_400
    assert tuned["seconds"] > 0
    recipe |= {"processes": 2, "batch_size": 8}
    twice = plan_jobs(load_experiment(experiment))["finetune"]["tuned"]
    assert twice["mem_bytes"] == 2 * tuned["mem_bytes"]
    assert twice["seconds"] == pytest.approx(tuned["seconds"])
    read = result["streams"]["long"]["dense"]["mem_bytes"]
    assert read > 2 * 1_235_814_400 + 2 * 16 * 8 * 64 * 2 * 100_000


def test_jobs_of_small_models_reserve_the_minimum_of_their_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = load_experiment(
        {
            "experiment": "small",
            "models": {"base": {"path": str(TINY)}},
            "systems": {"dense": {"model": "base"}},
            "tasks": {"passkey": {"type": "passkey"}},
            "lengths": [512],
        }
    )
    reserved = JobResources(small)
    assert reserved.mem_mb(4000, "evaluate", "dense") == 4000
    assert reserved.minutes(120, "evaluate", "dense") == 120
    assert reserved.gpus("evaluate", "dense") == 0
    assert not CACHE.exists()


def test_sizes_and_durations_are_rounded_to_three_digits():
    assert [size(n) for n in (0, 999, 2**20, 1.5 * 2**40)] == ["0 B", "999 B", "1 MiB", "1.5 TiB"]
    shown = [duration(n) for n in (5e-5, 0.25, 1.16, 90, 7200, 2 * 86400)]
    assert shown == ["50 us", "250 ms", "1.16 s", "1.5 min", "2 h", "2 d"]
