"""Answer samples by real generation: greedy, until EOS or max_new_tokens."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple

import polars as pl
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
)

from needlework.attention.apply import apply
from needlework.attention.density import Density, LayerDensity
from needlework.config.attention import Attention
from needlework.evaluation.answer_tables import CELL, MEASUREMENTS, PREDICTIONS
from needlework.evaluation.generation.answer_checkpoint import AnswerCheckpoint
from needlework.evaluation.generation.thinking_budget import ThinkingBudget, opens_thought
from needlework.evaluation.memory_monitor import MemoryMonitor
from needlework.evaluation.meter import FirstTokenClock, cache_bytes
from needlework.reasoning.tags import CLOSE_TAG, OPEN_TAG
from needlework.runtime.memory import peak_memory_bytes
from needlework.runtime.progress import track

_DENSITIES = {
    **CELL,
    "layer": pl.Int64,
    "stage": pl.String,
    "density": pl.Float64,
    "pairs": pl.Int64,
}


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    samples: pl.DataFrame,
    *,
    system: str,
    attention: Attention | None = None,
    thinking_tokens: int = 0,
    cache: str = "dynamic",
    prefill_chunk_tokens: int | None = None,
    finished: AnswerCheckpoint | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Predictions and measurements, one row a sample in the samples' order, and densities.

    The most likely token is taken each time: what the checkpoint's generation_config.json says of
    sampling, penalties or lengths is left out, and its eos_token_id (one, several, or the
    tokenizer's where it has none) ends an answer. A thought is closed after `thinking_tokens` new
    tokens; they are part of the samples' max_new_tokens. It stays in the prediction, from its
    `<think>` on, also where that stands in the prompt.

    `cache` is dynamic, quantized (keys and values in 8-bit floats) or offloaded (to main memory).
    `prefill_chunk_tokens` of a prompt go through the model at a time; None: all of it.

    Samples that `finished` has are not answered again, and each is added to it when it is answered.

    `attention` None is the model's own attention, its densities are 1. Densities are measured: kept
    over causal pairs of query and key in the sparse layers; decode_density is null where the first
    token ended the answer. cache_bytes is what the cache holds when the answer ends.

    peak_memory_bytes is what the sample took of the GPU, weights and all; without one, the most
    resident bytes since the process began. peak_resident_bytes are the most while the sample was
    answered, and memory how it went in that time: see MemoryMonitor.

    The densities have a row a task, length, sparse layer (numbered from 0) and stage (prefill,
    decode): the density over all samples together, and the causal pairs that it is the share of. No
    row stands for a layer with the model's own attention, so a dense system has none.

    Raises:
        ValueError: the tokenizer does not count a prompt's tokens as the sample does.
    """
    predictions, measurements = [], []
    finished = finished or AnswerCheckpoint()
    layers: dict[tuple[str, int], list[LayerDensity]] = {}
    put_on = apply(model, attention) if attention is not None else nullcontext()
    with put_on as handle, _greedy(model, tokenizer, cache, prefill_chunk_tokens):
        for row in track(
            samples.iter_rows(named=True),
            total=len(samples),
            description=f"{system} {samples['task'][0]} {samples['length'][0]}",
            unit="sample",
        ):
            found = finished.get(row["sample"])
            if found is None:
                if handle is not None:
                    handle.reset()
                    handle.prompt_tokens = row["tokens"]
                answer, measured = _answer(model, tokenizer, row, thinking_tokens)
                density = handle.density() if handle is not None else Density(1.0, 1.0)
                answer["prefill_density"] = density.prefill
                answer["decode_density"] = density.decode
                of_layers = [astuple(one) for one in density.layers]
                found = {"answer": answer, "measured": measured, "layers": of_layers}
                found = finished.add(row["sample"], found)
            key = {"system": system, **{k: row[k] for k in ("task", "length", "sample")}}
            predictions.append({**key, **found["answer"]})
            measurements.append({**key, **found["measured"]})
            measured_layers = (LayerDensity(*one) for one in found["layers"])
            layers.setdefault((row["task"], row["length"]), []).extend(measured_layers)
    return (
        pl.DataFrame(predictions, schema=PREDICTIONS),
        pl.DataFrame(measurements, schema=MEASUREMENTS),
        pl.DataFrame(
            [
                (system, *cell, one.layer, one.stage, one.density, one.pairs)
                for cell, measured in layers.items()
                for one in Density.of(measured).layers
            ],
            schema=_DENSITIES,
            orient="row",
        ),
    )


def empty_tables() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The tables of `generate_answers` without a row."""
    schemas = (PREDICTIONS, MEASUREMENTS, _DENSITIES)
    return tuple(pl.DataFrame(schema=schema) for schema in schemas)


@contextmanager
def _greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    cache: str,
    prefill_chunk_tokens: int | None,
) -> Iterator[None]:
    """The model with no generation settings but those of a plain greedy search."""
    own = model.generation_config
    eos = tokenizer.eos_token_id if own.eos_token_id in (None, []) else own.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=eos,
        pad_token_id=own.pad_token_id,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        # No word of a dynamic cache, which is not every model's own.
        cache_implementation=None if cache == "dynamic" else cache,
        cache_config={"backend": "fp8"} if cache == "quantized" else None,
        prefill_chunk_size=prefill_chunk_tokens,
    )
    try:
        yield
    finally:
        model.generation_config = own


@torch.inference_mode()
def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, row: dict, thinking_tokens: int
) -> tuple[dict, dict]:
    prompt = row["prompt"]
    inputs = tokenizer(prompt, return_tensors="pt").to(_input_device(model))
    prompt_tokens = inputs["input_ids"].shape[1]
    if prompt_tokens != row["tokens"]:
        raise ValueError(
            f"sample {row['sample']} of task {row['task']} at {row['length']}: the model's "
            f"tokenizer counts {prompt_tokens} tokens, the sample {row['tokens']}; make samples "
            "with the model's own tokenizer"
        )
    budget = LogitsProcessorList()
    if thinking_tokens:
        budget.append(ThinkingBudget(tokenizer, thinking_tokens, prompt_tokens))
    with MemoryMonitor() as monitor:
        clock = FirstTokenClock()
        generated = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=row["max_new_tokens"],
            logits_processor=budget,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        prefill_seconds, decode_seconds = clock.seconds()
    new = generated.sequences[0, prompt_tokens:].tolist()
    eos = model.generation_config.eos_token_id
    eos = set(eos) if isinstance(eos, list) else {eos}
    opened = OPEN_TAG if thinking_tokens and opens_thought(prompt) else ""
    answer = {
        "prediction": opened + _text(tokenizer, new),
        "new_tokens": len(new),
        "stop_reason": "eos" if new[-1] in eos else "length",
        "cache_bytes": cache_bytes(generated.past_key_values),
    }
    measured = {
        "prefill_seconds": prefill_seconds,
        "decode_seconds": decode_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_resident_bytes": monitor.peak_resident_bytes,
        "memory": monitor.points,
    }
    return answer, measured


def _input_device(model: PreTrainedModel) -> torch.device:
    """Where ids go: a model whose first weights lie on a disk fetches them to where it computes."""
    if model.device.type != "meta":
        return model.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text of tokens without special ones, but with the tags of a thought, special or not."""
    added = tokenizer.added_tokens_decoder
    tags = {
        i for i, token in added.items() if token.special and token.content in (OPEN_TAG, CLOSE_TAG)
    }
    if tags.isdisjoint(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)
    special = {i for i, token in added.items() if token.special} - tags
    return tokenizer.decode([i for i in ids if i not in special])
