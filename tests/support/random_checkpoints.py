"""Small random checkpoints of real families, on disk, with a tokenizer."""

from pathlib import Path

import torch
from support.families import config_of
from support.paths import TINY
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Llama4Config,
)

from needlework.config.attention.infini import Infini
from needlework.models.convert import convert

TOKENIZER = TINY
_VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32,
    "projector_output_dim": 32,
}  # fmt: skip


def save_checkpoint(folder: Path, family: str, infini: Infini | None = None, **keys) -> Path:
    """Weights large enough for answers that differ; `llama4` is the text model within the one that
    sees, as published."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    text = "llama4_text" if family == "llama4" else family
    ends = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    config = config_of(text, vocab_size=len(tokenizer), **ends, **keys)
    of = AutoModelForCausalLM
    if family == "llama4":
        config = Llama4Config(text_config=config.to_dict(), vision_config=_VISION)
        of = AutoModelForImageTextToText
    torch.manual_seed(0)
    model = of.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    if infini is not None:
        model = convert(model, infini)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
