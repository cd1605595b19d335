"""Translate a ModelSpec into transformers' arguments, and its failures into advice."""

import importlib
import logging
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import get_max_memory
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    BitsAndBytesConfig,
    PreTrainedConfig,
)
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.distributed import DistributedConfig

from needlework.config.opening import SPREAD, ModelSpec, Opening
from needlework.config.validation.opening import KeyProblem, attention_conflict, config_conflict
from needlework.sources import hub

PREFILL_CHUNKS = (8192, 1024)
"""Advised chunk sizes for prompts with activations that do not fit in memory."""


def loading_arguments(spec: ModelSpec, config: PreTrainedConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` that hold the weights as `spec.opening` says.

    Raises:
        ValueError: This machine, its packages or the checkpoint do not support it.
    """
    _require(spec, config)
    opening = spec.opening
    arguments: dict[str, Any] = {}
    if opening.attn_implementation is not None:
        arguments["attn_implementation"] = opening.attn_implementation
    if opening.quantization is not None:
        arguments["quantization_config"] = _quantization_config(spec)
    if opening.processes > 1:
        if opening.tp == 1:
            # Without tp no head or column is split. transformers refuses an empty tp_plan.
            config.get_text_config(decoder=True).base_model_tp_plan = {}
        arguments["distributed_config"] = DistributedConfig(
            tp_size=opening.processes, ep_size=opening.ep
        )
    elif opening.pp > 1:
        arguments["device_map"] = "balanced"
        limits = opening.max_memory or {
            str(gpu): size for gpu, size in get_max_memory().items() if gpu != "cpu"
        }
        of_gpus = {int(gpu): size for gpu, size in limits.items() if gpu.isdecimal()}
        arguments["max_memory"] = {gpu: size for gpu, size in of_gpus.items() if gpu < opening.pp}
        arguments["max_memory"]["cpu"] = 0
    elif opening.device_map is not None:
        arguments["device_map"] = opening.device_map
        if opening.device_map in SPREAD:
            arguments["max_memory"] = _max_memory(opening)
            arguments["offload_folder"] = opening.offload_folder
    return arguments


def quantizes_cache(config: PreTrainedConfig) -> bool:
    """Whether the keys and values of all layers can be quantized."""
    kinds, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    return set(kinds) <= {"full_attention"}


# Families with recurrent layers that keep their state between forward passes; others reset it.
KEEPS_STATE = {
    *("bamba", "falcon_h1", "granitemoehybrid", "lfm2", "nemotron_h", "olmo_hybrid"),
    *("qwen3_5_text", "qwen3_next"),
}


def prefills_in_chunks(config: PreTrainedConfig) -> bool:
    """Whether a prompt in several forward passes gives the same answer as in one.

    False if rotary angles depend on the length read so far, or if layers reset a recurrent state
    between passes.
    """
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    ropes = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    if any(parameters.get("rope_type") in ("dynamic", "longrope") for parameters in ropes):
        return False
    # Nothing is known of a checkpoint's own code before it runs.
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    if family is None or text.model_type in KEEPS_STATE:
        return True
    return family._supports_default_dynamic_cache() and not family._is_stateful


def _require(spec: ModelSpec, config: PreTrainedConfig) -> None:
    path, opening = spec.path, spec.opening
    wrong = config_conflict(config.to_dict(), opening)
    attention = getattr(config, "needlework_attention", None)
    if wrong is None and attention is not None:
        wrong = attention_conflict(opening, attention)
    if wrong is None and opening.cache == "quantized" and not quantizes_cache(config):
        wrong = (
            "cache",
            "is for models with full attention in all layers, and some of these differ; write "
            "dynamic",
        )
    if (
        wrong is None
        and opening.prefill_chunk_tokens is not None
        and not prefills_in_chunks(config)
    ):
        wrong = (
            "prefill_chunk_tokens",
            "is for models that cache only keys and values, or keep their state between chunks, "
            "with rotary angles independent of the text's length, unlike this one; remove it",
        )
    wrong = wrong or _missing_plan(config, opening)
    if wrong:
        key, what = wrong
        raise ValueError(f"{path}: {key} = {getattr(opening, key)!r}: {what}")
    gpus = torch.cuda.device_count()
    needed = opening.pp if opening.pp > 1 else int(opening.device_map == "cuda")
    if gpus < needed:
        key = "pp" if opening.pp > 1 else "device_map"
        raise ValueError(
            f"{path}: {key} = {getattr(opening, key)!r}: needs {needed} GPU(s) and torch sees "
            f"{gpus} here; remove {key}, or run on a machine with enough"
        )
    numbers = [int(number) for number in opening.max_memory or () if number.isdecimal()]
    if max(numbers, default=-1) >= gpus:
        raise ValueError(
            f"{path}: max_memory: names GPU {max(numbers)}, counted from 0, and torch sees {gpus} "
            "here; remove it, or run on a machine with enough"
        )
    if gpus and opening.processes > gpus:
        raise ValueError(
            f"{path}: {opening.processes} processes need a GPU each and torch sees {gpus}; write "
            f"{gpus} or less for tp and ep, or set CUDA_VISIBLE_DEVICES= to use none"
        )
    if opening.cache == "offloaded" and not gpus:
        raise ValueError(
            f"{path}: cache = 'offloaded': moves the cache from a GPU to main memory and torch "
            "sees no GPU here; write dynamic or quantized"
        )


def _missing_plan(config: PreTrainedConfig, opening: Opening) -> KeyProblem | None:
    """The key for which transformers has no plan to split the model's family."""
    text = config.get_text_config(decoder=True)
    for key, other in (("tp", "ep"), ("ep", "tp")):
        if getattr(opening, key) > 1 and not getattr(text, f"base_model_{key}_plan", None):
            has_other = getattr(text, f"base_model_{other}_plan", None)
            remedy = f"write {other}, or remove it" if has_other else "remove it"
            return key, f"transformers cannot split {text.model_type} this way; {remedy}"
    return None


def _quantization_config(spec: ModelSpec) -> BitsAndBytesConfig:
    opening = spec.opening
    where = f"{spec.path}: quantization = {opening.quantization!r}"
    try:
        importlib.import_module("bitsandbytes")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{where}: needs {error.name}, which is not installed; run pip install "
            "'needlework[quantized]', or remove quantization"
        ) from None
    # A broken install, a native library or backend that fails, or one built for another torch.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{where}: bitsandbytes does not load here ({_one_line(error)}); reinstall it for this "
            "machine's CUDA, or remove quantization"
        ) from None
    # It warns about each product in int8.
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    offload = {"llm_int8_enable_fp32_cpu_offload": opening.cpu_offload}
    if opening.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **offload)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=opening.quantization,
        bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
        **offload,
    )


def _max_memory(opening: Opening) -> dict[int | str, int | str]:
    memory: dict[int | str, int | str] = {
        int(device) if device.isdecimal() else device: size
        for device, size in (opening.max_memory or {}).items()
    }
    memory = memory or get_max_memory()
    if torch.cuda.is_available():
        # Layers leave the GPUs only if the user allows it.
        room = memory.get("cpu", psutil.virtual_memory().available)
        memory["cpu"] = room if opening.cpu_offload else 0
    return memory


def explain_error(spec: ModelSpec, error: Exception) -> str:
    """One line on why transformers did not open the checkpoint, and what to do."""
    path, message = spec.path, _one_line(error)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        return f"{path}: has no config.json; name a folder with a complete checkpoint"
    if not Path(path).exists() and (reason := hub.explain_error(path, error)) is not None:
        return reason
    if "trust_remote_code" in message:
        return (
            f"{path}: needs its own Python code, which is not run; write trust_remote_code: true "
            "if you have read it and trust it, or name another checkpoint"
        )
    if "offload_folder" in message or "dispatched on the CPU or the disk" in message:
        return out_of_device_memory(spec)
    if spec.opening.attn_implementation is not None and "Attention" in message:
        return (
            f"{path}: attn_implementation = {spec.opening.attn_implementation!r}: is not available "
            f"here ({message}); remove it"
        )
    return f"{path}: cannot be opened as a checkpoint ({message})"


def out_of_device_memory(spec: ModelSpec) -> str:
    """What to change if the weights do not fit on the allowed devices."""
    opening = spec.opening
    remedies = [] if opening.quantization else ["quantization: nf4"]
    if torch.cuda.is_available() and not opening.cpu_offload:
        remedies.append("cpu_offload: true")
    if opening.max_memory:
        remedies.append("more max_memory")
    if not opening.offload_folder:
        remedies.append("offload_folder: a folder with room")
    remedy = f"write {', or '.join(remedies)}" if remedies else "use a machine with more memory"
    return f"{spec.path}: its weights do not fit; {remedy}"


def out_of_memory(opening: Opening, prompt_tokens: int | None = None) -> str:
    """What to change if an allocation failed.

    Args:
        prompt_tokens: of the prompt being answered; None: the model was being opened.
    """
    remedies = []
    if prompt_tokens is not None:
        remedies.append(f"lengths below {prompt_tokens}")
        if opening.prefill_chunk_tokens is None and prompt_tokens > PREFILL_CHUNKS[0]:
            remedies.append(f"prefill_chunk_tokens: {PREFILL_CHUNKS[0]}")
        if opening.cache == "dynamic":
            remedies.append("cache: quantized")
    if opening.quantization is None and opening.processes == 1:
        remedies.append("quantization: nf4")
    if opening.device_map is None and opening.processes == 1:
        remedies.append("device_map: auto with cpu_offload: true")
    remedies.append(f"tp: {2 * opening.tp}" if opening.quantization is None else "a smaller model")
    return "write " + ", or ".join(remedies)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
