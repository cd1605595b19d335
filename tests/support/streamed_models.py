"""Small models of many families, with weights large enough that context matters."""

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from needlework.config.attention.infini import Infini
from needlework.models.convert import convert

VOCABULARY = 61
_SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {**_SPECIAL, "hidden_size": 32, "num_hidden_layers": 3}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_DENSE = {**_SMALL, **_HEADS, "intermediate_size": 48, "max_position_embeddings": 4096}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_MAMBA = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "mamba_n_groups": 1,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_DENSE),
    "mistral": lambda: MistralConfig(**_DENSE, sliding_window=64),
    "gemma2": lambda: Gemma2Config(
        **_DENSE, sliding_window=64, query_pre_attn_scalar=8, final_logit_softcapping=5.0
    ),
    "opt": lambda: OPTConfig(
        **_SMALL,
        ffn_dim=48,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=2048,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "mamba2": lambda: Mamba2Config(
        **_SMALL, num_heads=8, head_dim=8, state_size=8, n_groups=2, chunk_size=16
    ),
    "qwen3_next": lambda: Qwen3NextConfig(
        **_DENSE,
        **_LINEAR,
        **_EXPERTS,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    "falcon_h1": lambda: FalconH1Config(**_SMALL, **_HEADS, **_MAMBA, intermediate_size=48),
    "mamba": lambda: MambaConfig(**_SMALL, state_size=8),
    "recurrent_gemma": lambda: RecurrentGemmaConfig(
        **_SMALL,
        **{**_HEADS, "num_key_value_heads": 1},
        intermediate_size=48,
        lru_width=32,
        attention_window_size=64,
    ),
}

_SCALES = {"mamba2": 2}
"""Factors of the initial weights where 6 is too large: the state of mamba2 would amplify the
rounding of one pass to 2e-4 nats (against float64), while tests require 1e-5."""


def make(name: str) -> PreTrainedModel:
    """Make the model of one of CONFIGS; infini is llama with segments of 32 and open gates."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama" if name == "infini" else name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_SCALES.get(name, 6))
    if name == "infini":
        model = convert(model, Infini(segment_length=32, balance_init_type="randn"))
    return model.eval()


class Recurrent(nn.Module):
    """A recurrent model that keeps its own state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.rnn = nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, VOCABULARY)
        self.reset_state()

    def reset_state(self):
        self.hidden = None

    def get_state(self):
        return {"hidden": self.hidden}

    def set_state(self, state):
        self.hidden = state["hidden"]

    def forward(self, ids):
        out, self.hidden = self.rnn(3 * self.embed(ids), self.hidden)
        return 3 * self.head(out)


class Stateless(nn.Module):
    """A causal convolution over the token and the four before it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.mix = nn.Conv1d(16, VOCABULARY, 5)

    def forward(self, ids):
        x = nn.functional.pad(3 * self.embed(ids).transpose(1, 2), (4, 0))
        return (self.mix(x).transpose(1, 2),)
