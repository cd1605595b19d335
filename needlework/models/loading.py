"""What `Opening` is in the terms of transformers, and its failures in those of the user."""

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

from needlework.config.opening import SPREAD, Opening
from needlework.config.validation.opening import beside_attention, undivided
from needlework.sources import hub

PREFILL_CHUNKS = (8192, 1024)
"""Of how many tokens they are advised, where a whole prompt's activations do not fit."""


def arguments(
    path: str | Path, config: PreTrainedConfig, dtype: torch.dtype, opening: Opening
) -> dict[str, Any]:
    """Arguments of `from_pretrained` that open the checkpoint `path` as `opening` says.

    Raises:
        ValueError: this machine, its packages or the checkpoint do not allow it.
    """
    _require(path, config, opening)
    found: dict[str, Any] = {}
    if opening.attn_implementation is not None:
        found["attn_implementation"] = opening.attn_implementation
    if opening.quantization is not None:
        found["quantization_config"] = _bits(path, dtype, opening)
    if opening.processes > 1:
        if opening.tp == 1:
            # Heads and columns are whole in each process. An empty tp_plan is refused.
            config.get_text_config(decoder=True).base_model_tp_plan = {}
        found["distributed_config"] = DistributedConfig(
            tp_size=opening.processes, ep_size=opening.ep
        )
    elif opening.pp > 1:
        found["device_map"] = "balanced"
        memory = opening.max_memory or {
            str(gpu): size for gpu, size in get_max_memory().items() if gpu != "cpu"
        }
        kept = {int(gpu): size for gpu, size in memory.items() if gpu.isdecimal()}
        found["max_memory"] = {gpu: size for gpu, size in kept.items() if gpu < opening.pp}
        found["max_memory"]["cpu"] = 0
    elif opening.device_map is not None:
        found["device_map"] = opening.device_map
        if opening.device_map in SPREAD:
            found["max_memory"] = _max_memory(opening)
            found["offload_folder"] = opening.offload_folder
    return found


def quantizes_cache(config: PreTrainedConfig) -> bool:
    """Whether keys and values of all the model's layers can lie in few bits."""
    kinds, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    return set(kinds) <= {"full_attention"}


# Families whose layers carry a state, and carry it over a chunk's edge; others forget it there.
CARRYING = {
    *("bamba", "falcon_h1", "granitemoehybrid", "lfm2", "nemotron_h", "olmo_hybrid"),
    *("qwen3_5_text", "qwen3_next"),
}


def prefills_in_chunks(config: PreTrainedConfig) -> bool:
    """Whether a prompt in several forwards is, to the model, the same as in one.

    Not where rotary angles depend on how long the text is so far, nor where layers carry a state,
    but for the families that are known to carry it from forward to forward.
    """
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    ropes = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    if any(one.get("rope_type") in ("dynamic", "longrope") for one in ropes):
        return False
    # Of code that comes with a checkpoint nothing is known before it runs.
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    if family is None or text.model_type in CARRYING:
        return True
    return family._supports_default_dynamic_cache() and not family._is_stateful


def _require(path: str | Path, config: PreTrainedConfig, opening: Opening) -> None:
    wrong = undivided(config.to_dict(), opening)
    own = getattr(config, "needlework_attention", None)
    wrong = wrong or (own and beside_attention(opening, own))
    if not wrong and opening.cache == "quantized" and not quantizes_cache(config):
        wrong = (
            "cache",
            "is for models whose layers all attend to the whole text, and some of these do "
            "otherwise; write dynamic",
        )
    if not wrong and opening.prefill_chunk_tokens is not None and not prefills_in_chunks(config):
        wrong = (
            "prefill_chunk_tokens",
            "is for models with nothing but keys and values in their cache, or a state known to "
            "outlive a chunk, at rotary angles that do not depend on the text's length, and this "
            "is none; leave it out",
        )
    wrong = wrong or _unplanned(config, opening)
    if wrong:
        key, what = wrong
        raise ValueError(f"{path}: {key} = {getattr(opening, key)!r}: {what}")
    gpus = torch.cuda.device_count()
    needed = opening.pp if opening.pp > 1 else int(opening.device_map == "cuda")
    if gpus < needed:
        key = "pp" if opening.pp > 1 else "device_map"
        raise ValueError(
            f"{path}: {key} = {getattr(opening, key)!r}: needs {needed} GPU(s) and torch sees "
            f"{gpus} here; leave {key} out, or run where there are as many"
        )
    named = [int(number) for number in opening.max_memory or () if number.isdecimal()]
    if max(named, default=-1) >= gpus:
        raise ValueError(
            f"{path}: max_memory: names GPU {max(named)}, counted from 0, and torch sees {gpus} "
            "here; leave it out, or run where there are as many"
        )
    if gpus and opening.processes > gpus:
        raise ValueError(
            f"{path}: {opening.processes} processes need a GPU each and torch sees {gpus}; write "
            f"{gpus} or less for tp and ep, or set CUDA_VISIBLE_DEVICES= to use none"
        )
    if opening.cache == "offloaded" and not gpus:
        raise ValueError(
            f"{path}: cache = 'offloaded': keeps the cache of a GPU in main memory and torch sees "
            "no GPU here; write dynamic or quantized"
        )


def _unplanned(config: PreTrainedConfig, opening: Opening) -> tuple[str, str] | None:
    """The key for which transformers does not know how to divide the family, and what to do."""
    text = config.get_text_config(decoder=True)
    for key, other in (("tp", "ep"), ("ep", "tp")):
        if getattr(opening, key) > 1 and not getattr(text, f"base_model_{key}_plan", None):
            known = getattr(text, f"base_model_{other}_plan", None)
            remedy = f"write {other}, or leave it out" if known else "leave it out"
            return key, f"transformers does not know how to divide {text.model_type} so; {remedy}"
    return None


def _bits(path: str | Path, dtype: torch.dtype, opening: Opening) -> BitsAndBytesConfig:
    where = f"{path}: quantization = {opening.quantization!r}"
    try:
        importlib.import_module("bitsandbytes")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{where}: needs {error.name}, which is not installed; run pip install "
            "'needlework[quantized]', or leave quantization out"
        ) from None
    # Of a broken install, a native library or backend that fails, a torch that it is not made for.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{where}: bitsandbytes does not load here ({_line(error)}); install it anew for this "
            "machine's CUDA, or leave quantization out"
        ) from None
    # It warns of each product in int8.
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    offload = {"llm_int8_enable_fp32_cpu_offload": opening.cpu_offload}
    if opening.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **offload)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=opening.quantization,
        bnb_4bit_compute_dtype=dtype,
        **offload,
    )


def _max_memory(opening: Opening) -> dict[int | str, int | str]:
    given = opening.max_memory or {}
    memory = {int(k) if k.isdecimal() else k: size for k, size in given.items()}
    memory = memory or get_max_memory()
    if torch.cuda.is_available():
        # Without a word of the user no layer leaves the GPUs.
        room = memory.get("cpu", psutil.virtual_memory().available)
        memory["cpu"] = room if opening.cpu_offload else 0
    return memory


def explained(path: str | Path, error: Exception, opening: Opening) -> str:
    """One line on why transformers did not open the checkpoint `path`, and what to do."""
    told, folder = _line(error), Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return f"{path}: has no config.json; name a folder that holds a whole checkpoint"
    if not folder.exists() and (why := hub.why(path, error)) is not None:
        return why
    if "trust_remote_code" in told:
        return (
            f"{path}: brings Python code of its own, which is not run; write trust_remote_code: "
            "true if you have read it and trust it, or name another checkpoint"
        )
    if "offload_folder" in told or "dispatched on the CPU or the disk" in told:
        return no_room(path, opening)
    if opening.attn_implementation is not None and "Attention" in told:
        return (
            f"{path}: attn_implementation = {opening.attn_implementation!r}: cannot be used here "
            f"({told}); leave it out"
        )
    return f"{path}: not a checkpoint that can be opened ({told})"


def no_room(path: str | Path, opening: Opening) -> str:
    """What to change where the devices that are allowed do not hold the weights."""
    ways = [] if opening.quantization else ["quantization: nf4"]
    if torch.cuda.is_available() and not opening.cpu_offload:
        ways.append("cpu_offload: true")
    if opening.max_memory:
        ways.append("more max_memory")
    if not opening.offload_folder:
        ways.append("offload_folder: a folder with room")
    remedy = f"write {', or '.join(ways)}" if ways else "use a machine with more memory"
    return f"{path}: its weights do not fit; {remedy}"


def out_of_memory(opening: Opening, prompt_tokens: int | None = None) -> str:
    """What to change where an allocation failed, in opening or, with `prompt_tokens`, answering."""
    ways = []
    if prompt_tokens is not None:
        ways.append(f"lengths below {prompt_tokens}")
        if opening.prefill_chunk_tokens is None and prompt_tokens > PREFILL_CHUNKS[0]:
            ways.append(f"prefill_chunk_tokens: {PREFILL_CHUNKS[0]}")
        if opening.cache == "dynamic":
            ways.append("cache: quantized")
    if opening.quantization is None and opening.processes == 1:
        ways.append("quantization: nf4")
    if opening.device_map is None and opening.processes == 1:
        ways.append("device_map: auto with cpu_offload: true")
    ways.append(f"tp: {2 * opening.tp}" if opening.quantization is None else "a smaller model")
    return "write " + ", or ".join(ways)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
