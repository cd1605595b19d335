"""Answers with every way to open a model: offloaded, quantized, in one process or in two."""

import functools
import re
import resource
from pathlib import Path

import polars as pl
import pytest
import torch
from support.paths import PYTHONPATH
from support.random_checkpoints import TOKENIZER, save_checkpoint
from support.released_gates import DECODE, released_config, released_weights, write_released
from transformers import AutoConfig, AutoTokenizer

from needlework.config.attention.infini import Infini
from needlework.config.opening import ModelSpec, Opening
from needlework.evaluation.answer_store import AnswerStore
from needlework.evaluation.cell import Cell
from needlework.evaluation.early_stopping import StopRule
from needlework.evaluation.generation.job import EvaluationJob, answer_cells
from needlework.models.checkpoint import open_model
from needlework.runtime.processes import run_processes
from needlework.tables.skipped import LENGTH_REFUSED, OUT_OF_MEMORY

pytestmark = pytest.mark.slow

SKETCHWALK = {"type": "sketchwalk", "block_size": 16, "density": 0.4, "dense_layers": 0}
SYSTEMS = {
    "dense": None,
    "sketchwalk": SKETCHWALK,
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
    """Folder of a small random model, by family; `infini` is a Mixtral with Infini-attention."""

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


def job_of(folder, attention=None, **keys):
    return EvaluationJob(
        system="s",
        model=ModelSpec(path=folder, opening=Opening(**keys)),
        allow_extrapolation=False,
        attention=attention,
        thinking_tokens=0,
    )


NEVER_LOW = StopRule(min_accuracy=0, metrics={"t": "all"}, scorer="needlework.scoring.score")


def answered(job, samples, store=None):
    """Tables and skipped cells of one table of samples, answered on one thread."""
    return answer_cells(job, [Cell(str(samples))], store or AnswerStore())


def predicted(folder, samples, attention=None, **keys):
    return answered(job_of(folder, attention, **keys), samples)[0].predictions


@pytest.mark.parametrize("attention", ["dense", "sketchwalk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_offloading_to_disk_does_not_change_answers(
    checkpoint, samples, tmp_path, family, attention
):
    folder, system = checkpoint(family), SYSTEMS[attention]
    keys = {"device_map": "auto", "max_memory": {"cpu": "9MB"}}
    predictions = predicted(folder, samples, system, offload_folder=str(tmp_path), **keys)
    assert predictions.equals(predicted(folder, samples, system))
    with pytest.raises(ValueError, match=r"do not fit; write .*offload_folder"):
        predicted(folder, samples, system, **keys)


def test_released_gates_choose_the_blocks_of_answers(checkpoint, samples, tmp_path):
    folder = checkpoint("qwen3")
    config = AutoConfig.from_pretrained(folder)
    stated = released_config(config, 16, 8, DECODE)
    gates = write_released(tmp_path / "gates", stated, released_weights(stated, config.head_dim))
    system = {"type": "seer", "gates": gates, "block_size": 16, "stages": "decode"}
    budget = {**system, "token_budget": 32}
    answers = predicted(folder, samples, budget)
    dense = predicted(folder, samples)
    assert answers["prediction"].to_list() != dense["prediction"].to_list()
    assert answers["prefill_density"].to_list() == [1.0] * 3
    # Two blocks and the token's own.
    tokens = pl.read_parquet(samples)["tokens"].max()
    assert answers["decode_density"].max() < 4 * 16 / tokens
    everything = predicted(folder, samples, {**system, "density": 1.0})
    assert everything["prediction"].equals(dense["prediction"])


def test_an_infini_model_answers_from_disk(checkpoint, samples, tmp_path):
    keys = {"device_map": "auto", "max_memory": {"cpu": "9MB"}, "offload_folder": str(tmp_path)}
    folder = checkpoint("infini")
    assert predicted(folder, samples, **keys).equals(predicted(folder, samples))


@pytest.mark.workflow
def test_several_processes_give_the_answers_of_one(checkpoint, samples, tmp_path, monkeypatch):
    cases = [
        {
            "job": job_of(checkpoint(family), SYSTEMS[system], **keys).model_dump(mode="json"),
            "samples": str(samples),
        }
        for family, system, keys in IN_PROCESSES
    ]
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    run_processes("support.processes_of_model", {"cases": cases}, tmp_path, 2)
    for number, (family, system, keys) in enumerate(IN_PROCESSES):
        predictions = pl.read_parquet(tmp_path / f"{number}.parquet")
        alone = predicted(checkpoint(family), samples, SYSTEMS[system])
        # Each process holds the whole state of a system.
        assert predictions.drop("cache_bytes").equals(alone.drop("cache_bytes")), (
            family,
            system,
            keys,
        )
        ratio = (predictions["cache_bytes"] / alone["cache_bytes"]).max()
        assert 1 <= ratio < 1.2, (family, system, keys)


@pytest.mark.parametrize("family", [*FAMILIES, "infini"])
def test_quantized_weights_are_smaller_and_logits_close(checkpoint, family):
    ids = torch.arange(100, 300)[None]
    plain, _ = open_model(ModelSpec(path=checkpoint(family)))
    with torch.inference_mode():
        logits = plain(ids).logits
    errors = {}
    for quantization in ("int8", "nf4", "fp4"):
        model, _ = open_model(
            ModelSpec(path=checkpoint(family), opening=Opening(quantization=quantization))
        )
        assert model.get_memory_footprint() < plain.get_memory_footprint()
        with torch.inference_mode():
            predictions = model(ids).logits
        errors[quantization] = ((predictions - logits).norm() / logits.norm()).item()
    assert 0 < errors["int8"] < errors["nf4"] < errors["fp4"] < 1


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_quantized_models_answer_with_an_attention_system(
    checkpoint, samples, quantization, caplog
):
    predictions = predicted(checkpoint("qwen3"), samples, SKETCHWALK, quantization=quantization)
    plain = predicted(checkpoint("qwen3"), samples, SKETCHWALK)
    assert predictions["prefill_density"].equals(plain["prefill_density"])
    assert predictions["cache_bytes"].equals(plain["cache_bytes"])
    assert "MatMul8bitLt" not in caplog.text


def test_shards_are_rows_of_the_whole_table(checkpoint, samples):
    job = job_of(checkpoint("qwen3"), SKETCHWALK)
    whole = answered(job, samples)[0].predictions
    parts = [
        answer_cells(job, [Cell(str(samples), i, i + 1)], AnswerStore())[0].predictions
        for i in range(3)
    ]
    assert pl.concat(parts).equals(whole)


def test_a_quantized_cache_is_smaller_and_answers_close(checkpoint, samples):
    folder = checkpoint("qwen3")
    for system in (None, SYSTEMS["window"]):
        plain, small = (
            predicted(folder, samples, system, cache=cache) for cache in ("dynamic", "quantized")
        )
        assert (small["cache_bytes"] < 0.3 * plain["cache_bytes"]).all()
        first = [table["prediction"].str.slice(0, 6) for table in (plain, small)]
        assert first[0].equals(first[1])


def test_answered_samples_are_not_answered_again(checkpoint, samples, tmp_path):
    job = job_of(checkpoint("mixtral"), SKETCHWALK)
    first = AnswerStore(tmp_path, {"key": 1})
    whole, _ = answered(job, samples, first)
    (segment,) = first.folder.glob("*.jsonl")
    lines = segment.read_text().splitlines()
    assert len(lines) == first.added == 3
    # What a kill leaves: two complete lines and a part of the third.
    segment.write_text("\n".join([*lines[:2], lines[2][:50]]))
    second = AnswerStore(tmp_path, {"key": 1})
    again, _ = answered(job, samples, second)
    assert second.added == 1
    assert again.predictions.equals(whole.predictions)
    assert again.measurements[:2].equals(whole.measurements[:2])
    assert again.measurements["prefill_seconds"][2] != whole.measurements["prefill_seconds"][2]
    assert again.densities.equals(whole.densities)
    other = AnswerStore(tmp_path, {"key": 2})
    assert answered(job, samples, other)[0].predictions.equals(whole.predictions)
    assert other.added == 3


def test_a_store_with_every_answer_opens_no_model(checkpoint, samples, tmp_path):
    store = AnswerStore(tmp_path)
    tables, _ = answered(job_of(checkpoint("qwen3")), samples, store)
    missing = job_of(tmp_path / "no-such-model")
    again, skipped = answered(missing, samples, AnswerStore(tmp_path))
    assert all(map(pl.DataFrame.equals, again, tables))
    assert skipped == []


@pytest.mark.parametrize("family", ["gpt_oss", "llama4"])
def test_sliding_layers_refuse_a_quantized_cache(checkpoint, samples, family):
    with pytest.raises(ValueError, match="cache = 'quantized': is for models with full attention"):
        predicted(checkpoint(family), samples, cache="quantized")


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("qwen3", {"device_map": "cuda"}, "needs 1 GPU"),
        ("qwen3", {"pp": 2}, "needs 2 GPU"),
        ("qwen3", {"cache": "offloaded"}, "no GPU here"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_gpu")
def test_missing_hardware_is_a_one_line_error(checkpoint, samples, family, keys, message):
    with pytest.raises(ValueError, match=message) as raised:
        predicted(checkpoint(family), samples, **keys)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("gpt_oss", {"tp": 2}, "tp = 2: transformers cannot split gpt_oss this way"),
        ("llama4", {"ep": 2}, "ep = 2: transformers cannot split llama4_text this way"),
        ("infini", {"tp": 2}, "tp = 2: splits heads, which infini needs together"),
    ],
    ids=str,
)
def test_a_family_that_cannot_be_divided_is_a_one_line_error(checkpoint, family, keys, message):
    with pytest.raises(ValueError, match=message) as raised:
        open_model(ModelSpec(path=checkpoint(family), opening=Opening(**keys)))
    assert "\n" not in str(raised.value)


def _one_prompt(path, tokens):
    """Write a table with one prompt of `tokens` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    prompt = " the" * (tokens - len(tokenizer("")["input_ids"]))
    assert len(tokenizer(prompt)["input_ids"]) == tokens
    row = {"task": "t", "length": 600, "sample": 0, "prompt": prompt, "tokens": tokens}
    pl.DataFrame([{**row, "max_new_tokens": 10}]).write_parquet(path)
    return path


def test_a_length_beyond_the_positions_is_an_error_or_stops_early(checkpoint, tmp_path):
    long, job = _one_prompt(tmp_path / "600.parquet", 590), job_of(checkpoint("qwen3"))
    with pytest.raises(ValueError, match="600 tokens exceed its 512 positions; write smaller"):
        answered(job, long)
    tables, (skipped,) = answered(job.model_copy(update={"stop_rule": NEVER_LOW}), long)
    assert len(tables.predictions) == 0
    assert skipped.reason == LENGTH_REFUSED
    assert skipped.detail == "600 tokens at 600, beyond the model's 512 positions"
    extrapolates = job.model_copy(update={"allow_extrapolation": True})
    assert len(answered(extrapolates, long)[0].predictions) == 1


def test_out_of_memory_is_an_error_or_stops_early(checkpoint, samples, tmp_path):
    # Eager attention holds all pairs: more than a terabyte.
    long = _one_prompt(tmp_path / "600.parquet", 300_000)
    job = job_of(checkpoint("qwen3"), attn_implementation="eager")
    job = job.model_copy(update={"allow_extrapolation": True})
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        with pytest.raises(
            ValueError, match="out of memory while answering; write lengths below 300"
        ):
            answered(job, long)
        job = job.model_copy(update={"stop_rule": NEVER_LOW})
        cells = [Cell(str(path)) for path in (long, samples)]
        tables, (skipped,) = answer_cells(job, cells, AnswerStore())
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    assert (skipped.length, skipped.reason) == (600, OUT_OF_MEMORY)
    assert re.match("answering at 600: .*allocate", skipped.detail)
    assert len(tables.predictions) == 3


@pytest.mark.workflow
def test_early_stopping_in_several_processes_answers_the_other_cells(checkpoint, samples, tmp_path):
    long, job = _one_prompt(tmp_path / "600.parquet", 590), job_of(checkpoint("mixtral"), tp=2)
    job = job.model_copy(update={"stop_rule": NEVER_LOW})
    cells = [Cell(str(path)) for path in (long, samples)]
    store = AnswerStore(tmp_path / "answers")
    tables, (skipped,) = answer_cells(job, cells, store, 2)
    assert (skipped.length, skipped.reason) == (600, LENGTH_REFUSED)
    assert tables.predictions["prediction"].equals(
        predicted(checkpoint("mixtral"), samples)["prediction"]
    )


@pytest.mark.workflow
def test_a_process_without_memory_ends_the_cell_not_the_job(checkpoint, samples, tmp_path):
    long = _one_prompt(tmp_path / "600.parquet", 300_000)
    job = job_of(checkpoint("mixtral"), tp=2, attn_implementation="eager")
    job = job.model_copy(update={"stop_rule": NEVER_LOW, "allow_extrapolation": True})
    cells = [Cell(str(path)) for path in (long, samples)]
    tables, (skipped,) = answer_cells(job, cells, AnswerStore(tmp_path / "answers"), 2)
    assert (skipped.length, skipped.reason) == (600, OUT_OF_MEMORY)
    assert len(tables.predictions) == 3
