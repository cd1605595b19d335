"""Compare planned with measured memory for random models of many families.

Each row is a separate process that opens a checkpoint from disk and answers one prompt on the CPU
in one thread.
"""

import shutil
import tempfile
from multiprocessing import get_context
from pathlib import Path

import torch
from pydantic import TypeAdapter
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from needlework.attention.apply import apply
from needlework.attention.base import computation_of
from needlework.config.attention.registry import AnyAttention
from needlework.config.devices import devices
from needlework.config.opening import ModelSpec
from needlework.evaluation.meter import cache_bytes
from needlework.models.checkpoint import open_config, open_model
from needlework.models.convert import convert
from needlework.planning.cost import PROCESS_BYTES, Model
from needlework.planning.shape import Shape
from needlework.runtime.memory import peak_memory_bytes

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "resources" / "needlework-tiny"
NEW_TOKENS = 4
_COMMON = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 17000,
    "max_position_embeddings": 16384, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 256}
_LATENT = {
    "q_lora_rank": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64,
    "v_head_dim": 64, "n_routed_experts": 8, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 8,
}  # fmt: skip
_TURNS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 512}
_WALK = {"type": "sketchwalk", "heads": "sum", "block_size": 16, "density": 0.2}
_X = {"type": "xattention", "block_size": 64, "density": 0.2}
# Family, config keys besides _COMMON, dtype, attention, tokens.
SHAPES = [
    ("llama", {}, "float32", None, 4096),
    ("llama", {}, "bfloat16", None, 4096),
    ("llama", {}, "float32", _WALK, 4096),
    ("llama", {}, "float32", _X, 4096),
    ("llama", {}, "float32", {"type": "window", "recent_tokens": 512}, 4096),
    ("llama", {"head_dim": 32}, "float32", {"type": "infini", "segment_length": 512}, 4096),
    ("qwen3", {"head_dim": 32, **_TURNS, "use_sliding_window": True}, "float32", None, 4096),
    ("gemma3_text", {"head_dim": 32, **_TURNS}, "float32", None, 4096),
    ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}, "float32", None, 4096),
    ("gpt_oss", {"num_local_experts": 8, "head_dim": 32, **_TURNS}, "float32", None, 2048),
    ("llama4_text", {
        "num_local_experts": 8, "intermediate_size_mlp": 704, "attention_chunk_size": 512,
        "head_dim": 32, "no_rope_layers": [1, 1, 1, 0],
    }, "float32", None, 4096),
    ("deepseek_v3", {**_LATENT, **_EXPERTS}, "float32", None, 4096),
    ("falcon_h1", {
        "mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 64,
        "head_dim": 32,
    }, "float32", None, 4096),
]  # fmt: skip


def plan_table() -> str:
    """The table as Markdown."""
    lines = [
        "# Planned and measured memory",
        "",
        "Random models with four layers and hidden size 256, loaded from disk; one prompt each "
        "on the",
        f"CPU in one thread, {NEW_TOKENS} new tokens. Peak: peak resident memory; the plan "
        f"includes "
        f"{PROCESS_BYTES // 2**20} MiB",
        "for the process itself. Plans use config.json only.",
        "",
        "| family | system | dtype | tokens | cache planned | measured | error | peak planned "
        "| measured | error |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for shape in SHAPES:
        lines.append(row(*shape))
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def row(family: str, keys: dict, dtype: str, attention: dict | None, tokens: int) -> str:
    """One row of the table."""
    system = TypeAdapter(AnyAttention | None).validate_python(attention)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        CONFIG_MAPPING[family](**{**_COMMON, **keys}).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / file, folder)
        method = None if system is None else computation_of(system)
        own = method if system is not None and system.converts_model else None
        model = Model(Shape(open_config(ModelSpec(path=folder)), dtype), own)
        planned = model.cost(method, tokens, devices()["cpu"])
        # Spawn, because a forked process starts at its parent's size.
        with get_context("spawn").Pool(1) as pool:
            pool.apply(make_random, (folder, dtype))
        with get_context("spawn").Pool(1) as pool:
            cache, peak = pool.apply(_answer, (folder, dtype, system, tokens))
    return (
        f"| {family} | {attention['type'] if attention else 'dense'} | {dtype} | {tokens:,} "
        f"| {compared(planned.cache_bytes, cache)} | {compared(planned.peak_bytes, peak)} |"
    )


def make_random(folder: Path, dtype: str) -> None:
    """Save a random model next to its config.json."""
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)


def _answer(folder: Path, dtype: str, system: AnyAttention | None, tokens: int) -> tuple[int, int]:
    """Cache bytes at the end, and peak bytes of the process."""
    model, _ = open_model(ModelSpec(path=folder, dtype=dtype))
    if system is not None and system.converts_model:
        model = convert(model, system)
    elif system is not None:
        apply(model, system)
    ids = torch.arange(tokens - NEW_TOKENS)[None] % 1000 + 3
    answer = model.generate(
        ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
        return_dict_in_generate=True,
    )  # fmt: skip
    return cache_bytes(answer.past_key_values), peak_memory_bytes()


def compared(planned: int, measured: int) -> str:
    """Cells with planned bytes, measured bytes and the relative error."""
    error = 100 * (planned / measured - 1)
    return f"{planned / 2**20:,.1f} MiB | {measured / 2**20:,.1f} MiB | {error:+.1f} %"
