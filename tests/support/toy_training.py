"""A model with a few thousand parameters, its tokenizer and rows, and functions to fine-tune it."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from needlework.config.gates import SeerGates
from needlework.config.opening import ModelSpec
from needlework.config.training import Finetune, FinetuneStage
from needlework.training.checkpoints import Checkpoints
from needlework.training.finetune import finetune_checkpoint
from needlework.training.run import run

ROWS = pl.DataFrame(
    {
        "prompt": ["a1 b2 a", "c3 d4 e5 d", "f6 g7 f", "h8 i9 j0 h"],
        "answer": [" 1", " 4", " 66", " 8"],
    }
)

PROSE = pl.DataFrame(
    {"input_ids": [[1, *range(3, 12)], [*range(5, 21)], [1, *range(9, 18)], [*range(8, 24)]]},
    {"input_ids": pl.List(pl.Int32)},
)
TABLES = {"toy": ROWS, "prose": PROSE}


def characters() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character, which puts <bos> before prompts."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    for character in " abcdefghij0123456789":
        vocabulary[character] = len(vocabulary)
    core = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = Split("", "isolated")
    core.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = {
        "vocab_size": 24,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_bias": True,
    }
    return LlamaForCausalLM(LlamaConfig(**{**config, **changes}))


def recipe(**changes) -> Finetune:
    return Finetune(
        **{
            "data": "toy",
            "steps": 3,
            "sequence_length": 32,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "log_every": 1,
            **changes,
        }
    )


def gates_config(**changes) -> SeerGates:
    """Gates and their recipe; keys of `SeerGates` and of `Distill`."""
    own = {k: changes.pop(k) for k in ("block_size", "gate_dim", "stages") if k in changes}
    recipe = {
        "data": ["toy"],
        "steps": 3,
        "sequence_length": 32,
        "batch_size": 2,
        "log_every": 1,
        "warmup_steps": 0,
        **changes,
    }
    return SeerGates.model_validate({"model": "toy", "block_size": 3, "distill": recipe, **own})


def write(folder: Path, **changes) -> dict[str, Any]:
    """Write a checkpoint and tables of rows; return them as arguments of `finetune_checkpoint`."""
    llama(**changes).save_pretrained(folder / "base")
    characters().save_pretrained(folder / "base")
    rows = {name: str(folder / f"{name}.parquet") for name in TABLES}
    for name, table in TABLES.items():
        table.write_parquet(rows[name])
    return {"base": str(folder / "base"), "rows": rows}


INFINI = {"type": "infini", "segment_length": 6, "segment_alignment": "end"}
RECIPE = recipe(
    curriculum=[FinetuneStage(steps=9, sequence_length=12, batch_size=3)],
    steps=80,
    # Coprime, so that metrics rows and checkpoints fall on different steps.
    log_every=5,
    checkpoint_every=7,
    balance_factor_learning_rate=0.05,
)


def finetuned(
    folder: Path, dropout: float = 0.2, attention: Any = INFINI, validation: Any = None, **changes
) -> Checkpoints:
    """Fine-tune a toy model; dropout makes torch's global random state matter too."""
    config = RECIPE.model_copy(update=changes)
    paths = write(folder, attention_dropout=dropout)
    return run(
        finetune_checkpoint,
        config,
        folder / "checkpoints",
        threads=1,
        fingerprint_inputs={},
        model=ModelSpec(path=paths["base"]).dump(),
        rows={name: paths["rows"][name] for name in config.data_weights},
        validation=validation,
        attention=attention,
        seed=3,
    )


def _held_out(folder: Path, top: int) -> dict[str, str]:
    """Write 90 tokens to a file; return the arguments of `held_out.HeldOut` that name it."""
    folder.mkdir(exist_ok=True)
    ids = torch.randint(3, top, (90,), generator=torch.Generator().manual_seed(1))
    np.save(folder / "0.npy", ids.numpy().astype(np.uint32))
    np.save(folder / "0.starts.npy", np.array([0]))
    return {"tokens": str(folder / "0.npy"), "starts": str(folder / "0.starts.npy")}


def validated(folder: Path, top: int = 24, **changes) -> Checkpoints:
    """Fine-tune with a validation on held-out text, of tokens below `top`, every 9 steps."""
    arguments = {**_held_out(folder, top), "max_tokens": 80, "settings": {"chunk_size": 16}}
    validation = ("needlework.evaluation.streaming.held_out:HeldOut", arguments)
    return finetuned(folder, validation=validation, validate_every=9, **changes)


def mixed(folder: Path) -> Checkpoints:
    """Fine-tune on a weighted mixture of rows and text."""
    return finetuned(folder, data={"toy": 3.0, "prose": 1.0})


def product(checkpoints: Checkpoints) -> tuple[str, pl.DataFrame]:
    """Return the sha256 of the trained weights, and the metrics."""
    (weights,) = (path.read_bytes() for path in checkpoints.product.glob("*.safetensors"))
    metrics = pl.read_parquet(checkpoints.product / "metrics.parquet")
    measurements = pl.read_parquet(checkpoints.product / "measurements.parquet")
    assert measurements["step"].to_list() == metrics["step"].to_list()
    assert measurements["seconds"].is_sorted()
    assert measurements["tokens_per_second"].min() > 0
    return hashlib.sha256(weights).hexdigest(), metrics
