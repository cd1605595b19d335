"""The attention layers of a model: the modules that attend, and the shapes that decide costs."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

OWN_FORMS = {
    "doge": "makes a mask from the values of each layer",
    "hrm_text": "computes its layers several times in one forward",
    "minimax": "needs a cache of its own class",
}
"""Families whose layers look replaceable but are not, by model type: what they do instead."""


def attention_modules(model: PreTrainedModel) -> list[tuple[int, nn.Module]]:
    """Each attention module with the number of its layer, in order."""
    return [
        (module.layer_idx, module)
        for module in model.base_model.modules()
        if any(word in type(module).__name__ for word in ("Attention", "MLA"))
        and isinstance(getattr(module, "layer_idx", None), int)
    ]


def full_attention_layers(model: PreTrainedModel) -> list[int]:
    """Numbers of the layers with plain causal attention over the whole context.

    Includes layers that also have a state-space part ("hybrid", as in Falcon-H1). The kinds in the
    config decide; where it lists none, a module's `sliding_window` counts too.

    Raises:
        ValueError: the family's attention has a form of its own, or its modules do not have the
            layer numbers of the config.
    """
    config = model.config.get_text_config(decoder=True)
    if form := OWN_FORMS.get(config.model_type):
        raise ValueError(f"model: {config.model_type} {form}; choose a model of another family")
    if config.model_type.startswith("gemma4") and getattr(config, "num_kv_shared_layers", 0):
        # Its last layers compute the last tokens only, with slices of a ready-made mask.
        raise ValueError(
            f"model: {config.model_type} shares keys and values among its last layers "
            "(num_kv_shared_layers); choose a model of another family"
        )
    named = getattr(config, "layer_types", None)
    # get_layer_types_and_kwargs names layers that use another layer's keys and values "dummy".
    kinds = named or get_layer_types_and_kwargs(config)[0]
    modules = attention_modules(model)
    if any(layer < 0 for layer, _ in modules):
        raise ValueError(
            f"model: {config.model_type} shares attention modules among layers; choose a model of "
            "another family"
        )
    if any(layer >= len(kinds) for layer, _ in modules):
        raise ValueError(
            f"model: {config.model_type} has attention in more layers than the {len(kinds)} of its "
            "config (num_hidden_layers); choose a decoder without an encoder, such as llama"
        )
    return sorted(
        {
            layer
            for layer, module in modules
            if kinds[layer] in ("full_attention", "hybrid")
            and (named or getattr(module, "sliding_window", None) is None)
            and getattr(module, "is_causal", True)
        }
    )


@dataclass(frozen=True)
class LayerShape:
    """The shape of one decoder layer's attention."""

    kind: str
    """As transformers names it: full_attention, sliding_attention, linear_attention, ..."""
    window: int | None
    """Tokens in its window or chunk; None: all."""
    heads: int
    kv_heads: int
    """0 if the layer has no keys and values."""
    key_dim: int
    value_dim: int
    is_full: bool
    """Whether it is causal attention over the whole context, which a method can replace."""
    item_bytes: int
    """Bytes of a number in the model's dtype."""

    @property
    def pair_flops(self) -> int:
        """Operations for one (query, key) pair over all heads: 2 (d_k + d_v) a head
        (Kaplan et al., 2020, appendix B)."""
        return 2 * self.heads * (self.key_dim + self.value_dim)

    @property
    def kv_row_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return self.kv_heads * (self.key_dim + self.value_dim) * self.item_bytes

    def pairs(self, tokens: int) -> int:
        """(query, key) pairs that the model's own attention computes over `tokens` tokens."""
        if self.kv_heads == 0:
            return 0
        if self.window is not None and self.kind == "chunked_attention":
            whole, rest = divmod(tokens, self.window)
            return whole * count_causal_pairs(self.window) + count_causal_pairs(rest)
        return count_causal_pairs(tokens, self.window)


def count_causal_pairs(tokens: int, window: int | None = None) -> int:
    """Causal (query, key) pairs, with a window only those less than `window` tokens apart."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window
