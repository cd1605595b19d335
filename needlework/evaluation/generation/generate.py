"""Answer samples by greedy generation, until EOS or max_new_tokens."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple
from typing import Any

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
from needlework.attention.density import Density
from needlework.config.attention.base import Attention
from needlework.config.models.thought import ThoughtFormat
from needlework.evaluation.answer_store import AnswerStore
from needlework.evaluation.generation.tables import AnswerTables, answer_tables
from needlework.evaluation.generation.thinking_budget import ThinkingBudget
from needlework.evaluation.memory_monitor import MemoryMonitor
from needlework.evaluation.meter import FirstTokenClock, cache_bytes
from needlework.models.special_ids import end_ids, pad_id
from needlework.reasoning.formats import THINK, format_of, opens_reasoning
from needlework.runtime.device import device_name
from needlework.runtime.memory import peak_memory_bytes
from needlework.runtime.progress import track
from needlework.sources.control_tokens import ControlTokens


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    samples: pl.DataFrame,
    *,
    system: str,
    attention: Attention | None = None,
    thinking_tokens: int = 0,
    thought_format: ThoughtFormat | None = None,
    cache: str = "dynamic",
    prefill_chunk_tokens: int | None = None,
    store: AnswerStore | None = None,
) -> AnswerTables:
    """Answer samples; return predictions, measurements and densities.

    Decoding is greedy. The checkpoint's generation_config.json is ignored, except for its
    eos_token_id. Any end token of that file, config.json or the tokenizer ends an answer.

    Predictions and measurements have one row per sample, in the samples' order. A prediction
    includes its reasoning, from `<think>` on even if the prompt ends with that tag. cache_bytes is
    the size of the cache at the end of the answer.

    peak_memory_bytes is the peak during the sample, weights included: the GPU's, or without one the
    process's resident bytes. peak_resident_bytes and memory: see MemoryMonitor. measured_at is the
    time in UTC when the answer was complete, device the GPU or processor.

    Density is measured: kept pairs over causal pairs of query and key. prefill_density and
    decode_density are those of all full-attention layers of the model, sparse_layers_* those of the
    layers that the system replaces, null if there are none. Densities of decode are null if the
    first token ended the answer. The table of densities has one row per task, length,
    full-attention layer (from 0) and stage (prefill, decode), over all samples together, with the
    number of causal pairs; is_sparse is false for layers that keep the model's own attention. It is
    empty without a sparse system.

    Args:
        model: in eval mode.
        tokenizer: the model's own.
        samples: columns as in `tasks.generate.SAMPLES`.
        system: name of the system, for the tables.
        attention: None: the model's own attention, of density 1.
        thinking_tokens: new tokens after which reasoning is closed, part of max_new_tokens; 0: no
            limit.
        thought_format: format of the reasoning; None: the one of the chat template.
        cache: dynamic, quantized (keys and values in 8-bit floats) or offloaded (to main memory).
        prefill_chunk_tokens: prompt tokens per forward; None: all.
        store: samples that it holds are not answered again; new answers are added.

    Raises:
        ValueError: the tokenizer counts another number of prompt tokens than the sample states.
    """
    answers = []
    thought = format_of(tokenizer.chat_template, thought_format) or THINK
    control = ControlTokens(tokenizer.backend_tokenizer)
    store = store or AnswerStore()
    applied = apply(model, attention) if attention is not None else nullcontext()
    with applied as handle, _greedy(model, tokenizer, cache, prefill_chunk_tokens):
        for row in track(
            samples.iter_rows(named=True),
            total=len(samples),
            description=f"{samples['task'][0]} {samples['length'][0]}",
            unit="sample",
        ):
            entry = store.get(row)
            if entry is None:
                if handle is not None:
                    handle.reset()
                    handle.prompt_tokens = row["tokens"]
                answer, measured = _answer(model, tokenizer, control, row, thinking_tokens, thought)
                density = handle.density() if handle is not None else Density(1.0, 1.0)
                answer["prefill_density"] = density.prefill
                answer["decode_density"] = density.decode
                answer["sparse_layers_prefill_density"] = density.sparse_layers_prefill
                answer["sparse_layers_decode_density"] = density.sparse_layers_decode
                layer_densities = [astuple(layer) for layer in density.layers]
                entry = {"answer": answer, "measured": measured, "layers": layer_densities}
                entry = store.add(row, entry)
            answers.append((row, entry))
    return answer_tables(system, answers)


@contextmanager
def _greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    cache: str,
    prefill_chunk_tokens: int | None,
) -> Iterator[None]:
    """Replace the model's generation settings by those of a plain greedy search."""
    original = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=original.bos_token_id,
        eos_token_id=end_ids(model, tokenizer) or None,
        pad_token_id=pad_id(model, tokenizer),
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        # Unset for a dynamic cache, as not every model uses one by default.
        cache_implementation=None if cache == "dynamic" else cache,
        cache_config={"backend": "fp8"} if cache == "quantized" else None,
        prefill_chunk_size=prefill_chunk_tokens,
    )
    try:
        yield
    finally:
        model.generation_config = original


@torch.inference_mode()
def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    control: ControlTokens,
    row: dict[str, Any],
    thinking_tokens: int,
    thought: ThoughtFormat,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answer one sample; return its answer and measurements."""
    prompt = row["prompt"]
    ids = control.ids(prompt, row.get("control_spans"))
    prompt_tokens = len(ids)
    if prompt_tokens != row["tokens"]:
        raise ValueError(
            f"sample {row['sample']} of task {row['task']} at {row['length']}: the model's "
            f"tokenizer counts {prompt_tokens} prompt tokens, the sample states {row['tokens']}; "
            "make samples with the model's own tokenizer"
        )
    budget = LogitsProcessorList()
    if thinking_tokens:
        budget.append(ThinkingBudget(tokenizer, thinking_tokens, prompt_tokens, thought))
    input_ids = torch.tensor([ids], device=_input_device(model))
    with MemoryMonitor() as monitor:
        clock = FirstTokenClock()
        generated = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=row["max_new_tokens"],
            logits_processor=budget,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        prefill_seconds, decode_seconds = clock.seconds()
    new = generated.sequences[0, prompt_tokens:].tolist()
    eos = model.generation_config.eos_token_id or []
    opening_tag = thought.open if thinking_tokens and opens_reasoning(prompt, thought) else ""
    answer = {
        "prediction": opening_tag + _text(tokenizer, new, thought),
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
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": device_name(),
    }
    return answer, measured


def _input_device(model: PreTrainedModel) -> torch.device:
    """Device of the input ids; a model whose first weights are on disk computes elsewhere."""
    if model.device.type != "meta":
        return model.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _text(tokenizer: PreTrainedTokenizerFast, ids: list[int], thought: ThoughtFormat) -> str:
    """Decode tokens without special ones, but with reasoning tags, special or not."""
    added = tokenizer.added_tokens_decoder
    tags = {
        i
        for i, token in added.items()
        if token.special
        and any(token.content in text for text in (thought.open, thought.close, thought.final))
    }
    if tags.isdisjoint(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)
    special = {i for i, token in added.items() if token.special} - tags
    return tokenizer.decode([i for i in ids if i not in special])
