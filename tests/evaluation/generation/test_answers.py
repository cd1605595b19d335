"""Answers through every way to open a model: offloaded, quantized, of one process or of two."""

import functools
import resource
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import torch
from support.paths import PYTHONPATH
from support.random_checkpoints import TOKENIZER, save_checkpoint
from transformers import AutoTokenizer

from needlework.config.attention import Infini
from needlework.config.opening import Opening
from needlework.evaluation.early_stopping import EarlyStop
from needlework.evaluation.generation.answers import EvaluationJob, answers
from needlework.models.checkpoint import open_model
from needlework.runtime.processes import run_processes
from needlework.tables.skipped import LENGTH, MEMORY

WALK = {"type": "sketchwalk", "block_size": 16, "density": 0.4, "dense_layers": 0}
SYSTEMS = {
    "dense": None,
    "sketchwalk": WALK,
    "xattention": {"type": "xattention", "block_size": 16, "threshold": 0.5, "stride": 4},
    "window": {"type": "window", "block_size": 16, "sink_tokens": 4, "recent_tokens": 32},
}
FAMILIES = ("qwen3", "mixtral", "gpt_oss", "llama4")
IN_PROCESSES = [
    ("qwen3", "dense", {"tp": 2}),
    ("qwen3", "xattention", {"tp": 2}),
    ("mixtral", "dense", {"tp": 2}),
    ("mixtral", "dense", {"ep": 2}),
    ("mixtral", "sketchwalk", {"tp": 2, "ep": 2}),
    ("gpt_oss", "sketchwalk", {"ep": 2}),
    ("llama4", "dense", {"tp": 2}),
    ("llama4", "sketchwalk", {"tp": 2}),
    ("llama4", "window", {"tp": 2}),
    ("infini", "dense", {"ep": 2}),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a small random model, by family; `infini` is a Mixtral with that attention."""

    @functools.cache
    def made(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        if family == "infini":
            return save_checkpoint(folder, "mixtral", Infini(segment_length=32))
        return save_checkpoint(folder, family, max_position_embeddings=512)

    return made


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    prompts = [" ".join(["the pass key is", str(i), "and"] * 24) for i in range(3)]
    path = tmp_path_factory.mktemp("samples") / "128.parquet"
    pl.DataFrame(
        {
            "task": "t",
            "length": 128,
            "sample": range(3),
            "prompt": prompts,
            "tokens": [len(tokenizer(prompt)["input_ids"]) for prompt in prompts],
            "max_new_tokens": 6,
        }
    ).write_parquet(path)
    return path


def asked(folder, attention=None, **keys):
    return EvaluationJob(
        system="s",
        model=str(folder),
        dtype="float32",
        revision=None,
        allow_pickle=False,
        opening=Opening(**keys).model_dump(mode="json"),
        allow_extrapolation=False,
        attention=attention,
        thinking_tokens=0,
    )


def predicted(folder, samples, attention=None, **keys):
    return answers(asked(folder, attention, **keys), samples, slice(None), 1)[0]


@pytest.mark.parametrize("attention", ["dense", "sketchwalk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_offloading_to_a_disk_changes_nothing(checkpoint, samples, tmp_path, family, attention):
    folder, system = checkpoint(family), SYSTEMS[attention]
    keys = {"device_map": "auto", "max_memory": {"cpu": "9MB"}}
    found = predicted(folder, samples, system, offload_folder=str(tmp_path), **keys)
    assert found.equals(predicted(folder, samples, system))
    with pytest.raises(ValueError, match=r"do not fit; write .*offload_folder"):
        predicted(folder, samples, system, **keys)


def test_an_infini_model_answers_from_a_disk_too(checkpoint, samples, tmp_path):
    keys = {"device_map": "auto", "max_memory": {"cpu": "9MB"}, "offload_folder": str(tmp_path)}
    folder = checkpoint("infini")
    assert predicted(folder, samples, **keys).equals(predicted(folder, samples))


@pytest.mark.workflow
def test_processes_answer_as_one_does(checkpoint, samples, tmp_path, monkeypatch):
    cases = [
        {
            "asked": asdict(asked(checkpoint(family), SYSTEMS[system], **keys)),
            "samples": str(samples),
        }
        for family, system, keys in IN_PROCESSES
    ]
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    run_processes("support.processes_of_model", {"cases": cases}, tmp_path, 2)
    for number, (family, system, keys) in enumerate(IN_PROCESSES):
        found = pl.read_parquet(tmp_path / f"{number}.parquet")
        alone = predicted(checkpoint(family), samples, SYSTEMS[system])
        # What a system remembers is whole in each process.
        assert found.drop("cache_bytes").equals(alone.drop("cache_bytes")), (family, system, keys)
        ratio = (found["cache_bytes"] / alone["cache_bytes"]).max()
        assert 1 <= ratio < 1.2, (family, system, keys)


@pytest.mark.parametrize("family", [*FAMILIES, "infini"])
def test_quantized_weights_are_small_and_their_logits_close(checkpoint, family):
    ids = torch.arange(100, 300)[None]
    plain, _ = open_model(checkpoint(family))
    with torch.inference_mode():
        logits = plain(ids).logits
    errors = {}
    for quantization in ("int8", "nf4", "fp4"):
        model, _ = open_model(checkpoint(family), opening=Opening(quantization=quantization))
        assert model.get_memory_footprint() < plain.get_memory_footprint()
        with torch.inference_mode():
            found = model(ids).logits
        errors[quantization] = ((found - logits).norm() / logits.norm()).item()
    assert 0 < errors["int8"] < errors["nf4"] < errors["fp4"] < 1


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_quantized_models_answer_with_an_attention_system(
    checkpoint, samples, quantization, caplog
):
    found = predicted(checkpoint("qwen3"), samples, WALK, quantization=quantization)
    plain = predicted(checkpoint("qwen3"), samples, WALK)
    assert found["prefill_density"].equals(plain["prefill_density"])
    assert found["cache_bytes"].equals(plain["cache_bytes"])
    assert "MatMul8bitLt" not in caplog.text


def test_shards_are_the_rows_of_the_whole(checkpoint, samples):
    job = asked(checkpoint("qwen3"), WALK)
    whole = answers(job, samples, slice(None), 1)[0]
    parts = [answers(job, samples, slice(i, i + 1), 1)[0] for i in range(3)]
    assert pl.concat(parts).equals(whole)


def test_a_cache_in_few_bits_is_smaller_and_close(checkpoint, samples):
    folder = checkpoint("qwen3")
    for system in (None, SYSTEMS["window"]):
        plain, small = (
            predicted(folder, samples, system, cache=cache) for cache in ("dynamic", "quantized")
        )
        assert (small["cache_bytes"] < 0.3 * plain["cache_bytes"]).all()
        first = [table["prediction"].str.slice(0, 6) for table in (plain, small)]
        assert first[0].equals(first[1])


def test_what_is_answered_is_not_answered_again(checkpoint, samples, tmp_path):
    journal, job = tmp_path / "journal.jsonl", asked(checkpoint("mixtral"), WALK)
    whole = answers(job, samples, slice(None), 1, journal=(journal, "key"))
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    # As a kill leaves it: two whole lines and a part of the third.
    journal.write_text("\n".join([*lines[:2], lines[2][:50]]))
    again = answers(job, samples, slice(None), 1, journal=(journal, "key"))
    assert again[0].equals(whole[0])
    assert again[1][:2].equals(whole[1][:2])
    assert again[1]["prefill_seconds"][2] != whole[1]["prefill_seconds"][2]
    assert again[2].equals(whole[2])
    other = answers(job, samples, slice(None), 1, journal=(journal, "other"))
    assert not set(other[1]["prefill_seconds"]) & set(again[1]["prefill_seconds"])


@pytest.mark.parametrize("family", ["gpt_oss", "llama4"])
def test_layers_that_slide_keep_their_cache_as_it_is(checkpoint, samples, family):
    with pytest.raises(ValueError, match="cache = 'quantized': is for models whose layers all"):
        predicted(checkpoint(family), samples, cache="quantized")


@pytest.mark.parametrize(
    ("family", "keys", "says"),
    [
        ("qwen3", {"device_map": "cuda"}, "needs 1 GPU"),
        ("qwen3", {"pp": 2}, "needs 2 GPU"),
        ("qwen3", {"cache": "offloaded"}, "no GPU here"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_gpu")
def test_what_this_machine_has_not_is_one_line(checkpoint, samples, family, keys, says):
    with pytest.raises(ValueError, match=says) as raised:
        predicted(checkpoint(family), samples, **keys)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("family", "keys", "says"),
    [
        ("gpt_oss", {"tp": 2}, "tp = 2: transformers does not know how to divide gpt_oss so"),
        ("llama4", {"ep": 2}, "ep = 2: transformers does not know how to divide llama4_text so"),
        ("infini", {"tp": 2}, "tp = 2: shares out heads, which infini must see together"),
    ],
    ids=str,
)
def test_a_family_that_cannot_be_divided_so_is_one_line(checkpoint, family, keys, says):
    with pytest.raises(ValueError, match=says) as raised:
        open_model(checkpoint(family), opening=Opening(**keys))
    assert "\n" not in str(raised.value)


def _of_one_prompt(path, tokens):
    """Samples of one prompt with so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    prompt = " the" * (tokens - len(tokenizer("")["input_ids"]))
    assert len(tokenizer(prompt)["input_ids"]) == tokens
    row = {"task": "t", "length": 600, "sample": 0, "prompt": prompt, "tokens": tokens}
    pl.DataFrame([{**row, "max_new_tokens": 10}]).write_parquet(path)
    return path


def test_a_length_beyond_the_positions_is_an_error_or_stops_a_climb(checkpoint, tmp_path):
    long, job = _of_one_prompt(tmp_path / "600.parquet", 590), asked(checkpoint("qwen3"))
    with pytest.raises(ValueError, match="600 tokens are beyond its 512 positions; write smaller"):
        answers(job, long, slice(None), 1)
    with pytest.raises(
        EarlyStop, match="600 tokens at 600, beyond the model's 512 positions"
    ) as why:
        answers(job, long, slice(None), 1, stops_early=True)
    assert why.value.reason == LENGTH
    assert len(answers(replace(job, allow_extrapolation=True), long, slice(None), 1)[0]) == 1


def test_memory_that_runs_out_is_an_error_or_stops_a_climb(checkpoint, tmp_path):
    # Eager attention holds all pairs: more than a terabyte.
    long = _of_one_prompt(tmp_path / "600.parquet", 300_000)
    job = asked(checkpoint("qwen3"), attn_implementation="eager")
    job = replace(job, allow_extrapolation=True)
    bounds = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        with pytest.raises(ValueError, match="out of memory in answering; write lengths below 300"):
            answers(job, long, slice(None), 1)
        with pytest.raises(EarlyStop, match=r"^answering at 600: .*allocate") as why:
            answers(job, long, slice(None), 1, stops_early=True)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, bounds)
    assert why.value.reason == MEMORY


@pytest.mark.workflow
def test_what_stops_one_of_several_processes_stops_the_job(checkpoint, tmp_path):
    long, job = _of_one_prompt(tmp_path / "600.parquet", 590), asked(checkpoint("mixtral"), tp=2)
    with pytest.raises(EarlyStop, match="600 tokens at 600, beyond") as why:
        answers(job, long, slice(None), 1, stops_early=True)
    assert why.value.reason == LENGTH
