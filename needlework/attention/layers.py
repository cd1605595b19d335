"""The attention layers of a model: the modules that attend, and the shapes that decide costs."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


def attention_modules(model: PreTrainedModel) -> list[tuple[int, nn.Module]]:
    """Each attention module with the number of its layer, in order."""
    return [
        (module.layer_idx, module)
        for module in model.base_model.modules()
        if "Attention" in type(module).__name__
        and isinstance(getattr(module, "layer_idx", None), int)
    ]


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
