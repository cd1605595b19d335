"""Parameters and layers of a model, from its config.json without any weights."""

import re
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from needlework.attention.layers import LayerShape, full_attention_layers

# Bytes per weight; 4-bit weights have a float32 scale per 64 weights.
_QUANTIZED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
# What families raise for configurations that they cannot build or run.
MODEL_ERRORS = (
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
        dtype: of weights and activations, as torch names it.

    Raises:
        ValueError: transformers cannot build the model from its config alone.
    """

    def __init__(self, config: PreTrainedConfig, dtype: str = "float32"):
        self.dtype = dtype
        try:
            with torch.device("meta"):
                self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                    config, dtype=getattr(torch, dtype)
                ).eval()
        except MODEL_ERRORS as error:
            raise ValueError(
                f"{config.model_type}: cannot be built from its config.json ({error}); choose "
                "a decoder that AutoModelForCausalLM opens"
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
        """Number of weights, tied ones counted once."""
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
        """Weights that bitsandbytes quantizes: those of linear layers except the output layer.

        Experts stored in one tensor are not linear layers and are not quantized.
        """
        head = self.model.get_output_embeddings()
        return sum(
            module.weight.numel()
            for module in self.model.modules()
            if isinstance(module, nn.Linear) and module is not head
        )

    @property
    def linear_kernels(self) -> tuple[str, ...]:
        """Supported values of attn_implementation that do not build an n x n mask."""
        supported = {
            "flash_attention_2": self.model._supports_flash_attn,
            "flex_attention": self.model._supports_flex_attn,
        }
        return tuple(name for name, is_supported in supported.items() if is_supported)

    def weight_bytes(self, quantization: str | None = None) -> int:
        """Bytes of all weights in memory.

        Args:
            quantization: nf4 or fp4 (4 bits, and a float32 scale per 64 weights), int8 (1 byte);
                None: all in `dtype`.
        """
        if quantization is None:
            return self.parameters * self.item_bytes
        quantized = self.quantizable_parameters
        plain = (self.parameters - quantized) * self.item_bytes
        return plain + round(quantized * _QUANTIZED[quantization])

    @cached_property
    def layers(self) -> tuple[LayerShape, ...]:
        """The attention of each layer, in order."""
        text = self.text
        kinds, layer_arguments = get_layer_types_and_kwargs(text)
        full = set(full_attention_layers(self.model))
        heads = text.num_attention_heads if hasattr(text, "num_attention_heads") else 0
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        dim = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
        # Keys of latent attention (MLA) are wider than values.
        key_dim = getattr(text, "qk_head_dim", None) or dim
        value_dim = getattr(text, "v_head_dim", None) or dim
        return tuple(
            LayerShape(
                kind,
                arguments.get("sliding_window"),
                heads,
                0 if kind in _WITHOUT_KEYS else kv_heads,
                key_dim,
                value_dim,
                index in full,
                self.item_bytes,
            )
            for index, (kind, arguments) in enumerate(zip(kinds, layer_arguments, strict=True))
        )

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()  # each tied weight once

    def _expert_share(self) -> float:
        """Experts that a token is routed to / all experts; 1 without experts."""
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
