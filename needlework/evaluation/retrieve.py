"""Answer samples by real generation: greedy, until EOS or max_new_tokens."""

from contextlib import nullcontext

import polars as pl
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteriaList

from needlework.attention.apply import apply
from needlework.config.systems import Attention
from needlework.evaluation.meter import FirstTokenClock, cache_bytes, peak_memory_bytes
from needlework.progress import track

_PREDICTIONS = {
    "system": pl.String,
    "task": pl.String,
    "length": pl.Int64,
    "sample": pl.Int64,
    "prediction": pl.String,
    "new_tokens": pl.Int64,
    "stop_reason": pl.String,
    "prefill_density": pl.Float64,
    "decode_density": pl.Float64,
    "cache_bytes": pl.Int64,
}
_MEASUREMENTS = {
    **{name: _PREDICTIONS[name] for name in ("system", "task", "length", "sample")},
    "prefill_seconds": pl.Float64,
    "decode_seconds": pl.Float64,
    "peak_memory_bytes": pl.Int64,
}


def retrieve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    samples: pl.DataFrame,
    *,
    system: str,
    attention: Attention | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions and measurements, one row a sample, in the samples' order.

    `attention` None is the model's own attention, its densities are 1. Densities are measured: kept
    over causal pairs of query and key in the sparse layers; decode_density is null where the first
    token ended the answer. cache_bytes is what the cache holds when the answer ends.
    """
    predictions, measurements = [], []
    with apply(model, attention) if attention is not None else nullcontext() as handle:
        for row in track(
            samples.iter_rows(named=True),
            total=len(samples),
            description=f"{system} {samples['task'][0]} {samples['length'][0]}",
            unit="sample",
        ):
            if handle is not None:
                handle.reset()
            key = {"system": system, **{k: row[k] for k in ("task", "length", "sample")}}
            answer, measured = _answer(model, tokenizer, row["prompt"], row["max_new_tokens"])
            density = handle.density() if handle is not None else None
            predictions.append(
                {
                    **key,
                    **answer,
                    "prefill_density": density.prefill if density else 1.0,
                    "decode_density": density.decode if density else 1.0,
                }
            )
            measurements.append({**key, **measured})
    return (
        pl.DataFrame(predictions, schema=_PREDICTIONS),
        pl.DataFrame(measurements, schema=_MEASUREMENTS),
    )


@torch.inference_mode()
def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    max_new_tokens: int,
) -> tuple[dict, dict]:
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    clock = FirstTokenClock()
    generated = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        stopping_criteria=StoppingCriteriaList([clock]),
        return_dict_in_generate=True,
    )
    prefill_seconds, decode_seconds = clock.seconds()
    new = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    eos = model.generation_config.eos_token_id
    eos = set(eos) if isinstance(eos, list) else {eos}
    answer = {
        "prediction": tokenizer.decode(new, skip_special_tokens=True),
        "new_tokens": len(new),
        "stop_reason": "eos" if new[-1] in eos else "length",
        "cache_bytes": cache_bytes(generated.past_key_values),
    }
    measured = {
        "prefill_seconds": prefill_seconds,
        "decode_seconds": decode_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    return answer, measured
