"""What config.json says of a model: parameters and layers, without a single weight."""

import re
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from needlework.attention.apply import full_attention_layers
from needlework.attention.layers import LayerShape

# Bytes of a weight: half a byte or one, and a float32 scale for each 64 weights (4 bits).
_QUANTIZED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
# What families raise of configurations that they cannot serve.
FAILURES = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RuntimeError, AssertionError, ImportError),
)
_WITHOUT_KEYS = ("linear_attention", "mamba", "conv", "dummy")
_EXPERTS = re.compile(r"\.experts\.")
_TOP_K = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_topk", "top_k")


class Shape:
    """A causal language model on the `meta` device.

    Args:
        config: of any family that AutoModelForCausalLM opens.
        dtype: of weights and activations, by torch's name.

    Raises:
        ValueError: transformers cannot build this family from its config alone.
    """

    def __init__(self, config: PreTrainedConfig, dtype: str = "float32"):
        self.dtype = dtype
        try:
            with torch.device("meta"):
                self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                    config, dtype=getattr(torch, dtype)
                ).eval()
        except FAILURES as error:
            raise ValueError(
                f"{config.model_type}: cannot be built from its config.json ({error}); give a "
                "decoder that AutoModelForCausalLM opens"
            ) from None
        self.text: PreTrainedConfig = self.model.config.get_text_config(decoder=True)

    @property
    def family(self) -> str:
        """`model_type` of the config."""
        return self.model.config.model_type

    @property
    def item_bytes(self) -> int:
        """Bytes of a number in the model's dtype."""
        return getattr(torch, self.dtype).itemsize

    @cached_property
    def parameters(self) -> int:
        """All weights, those that are tied counted once."""
        return sum(weight.numel() for _, weight in self._weights())

    @cached_property
    def active_parameters(self) -> int:
        """Weights that a token is multiplied with, of `parameters`.

        Of routed experts the share k / experts; embeddings, which are looked up, only where the
        output layer is tied to them.
        """
        table = self.model.get_input_embeddings().weight
        head = self.model.get_output_embeddings()
        tied = head is not None and head.weight is table
        share = self._expert_share()
        return round(
            sum(
                weight.numel() * (share if _EXPERTS.search(name) else 1)
                for name, weight in self._weights()
                if weight is not table or tied
            )
        )

    @cached_property
    def quantizable_parameters(self) -> int:
        """Weights of linear layers, the output layer aside: what bitsandbytes quantizes.

        Experts that a family keeps in one tensor are no linear layers, and stay as they are.
        """
        head = self.model.get_output_embeddings()
        return sum(
            module.weight.numel()
            for module in self.model.modules()
            if isinstance(module, nn.Linear) and module is not head
        )

    @property
    def linear_kernels(self) -> tuple[str, ...]:
        """Values of attn_implementation that make no mask of n x n, which the family supports."""
        supported = {
            "flash_attention_2": self.model._supports_flash_attn,
            "flex_attention": self.model._supports_flex_attn,
        }
        return tuple(name for name, is_there in supported.items() if is_there)

    def weight_bytes(self, quantization: str | None = None) -> int:
        """Bytes of all weights in memory.

        Args:
            quantization: nf4, fp4 (4 bits, and a float32 scale for 64 weights), int8 (1 byte), or
                None: all in `dtype`.
        """
        quantized = 0 if quantization is None else self.quantizable_parameters
        plain = (self.parameters - quantized) * self.item_bytes
        return plain + round(quantized * _QUANTIZED.get(quantization, 0))

    @cached_property
    def layers(self) -> tuple[LayerShape, ...]:
        """Every layer's attention, in order."""
        text = self.text
        kinds, arguments = get_layer_types_and_kwargs(text)
        full = set(full_attention_layers(self.model))
        heads = text.num_attention_heads if hasattr(text, "num_attention_heads") else 0
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        dim = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
        # Latent attention (MLA) multiplies with wider keys than values.
        key_dim = getattr(text, "qk_head_dim", None) or dim
        value_dim = getattr(text, "v_head_dim", None) or dim
        return tuple(
            LayerShape(
                kind,
                given.get("sliding_window"),
                heads,
                0 if kind in _WITHOUT_KEYS else kv_heads,
                key_dim,
                value_dim,
                index in full,
                self.item_bytes,
            )
            for index, (kind, given) in enumerate(zip(kinds, arguments, strict=True))
        )

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()  # each tied weight once

    def _expert_share(self) -> float:
        """Experts that a token is routed to / experts there are; 1 without experts."""
        text = self.text
        top = next((getattr(text, key) for key in _TOP_K if getattr(text, key, None)), None)
        total = next(
            (
                getattr(text, key)
                for key in ("num_local_experts", "num_experts", "n_routed_experts")
                if getattr(text, key, None)
            ),
            None,
        )
        return top / total if top and total else 1.0
