"""What an attention method implements: its computation and its costs, in one class.

`needlework/attention/methods/<type>.py` has a class `Method`, a subclass of `Selector` (chooses
blocks at evaluation), `Conversion` (becomes part of a model) or `Adjustment` (changes a setting of
a converted model). `method_of` finds it by the `type` of the parameters; nothing else lists it.
"""

import importlib
from abc import ABC, abstractmethod
from fractions import Fraction
from functools import lru_cache
from typing import Generic, TypedDict, TypeVar
from weakref import ReferenceType, ref

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from needlework.attention.blocks import Blocks
from needlework.attention.cache_state import MethodState
from needlework.attention.layers import LayerShape
from needlework.config.attention.base import Attention, BlockSparse, Choices, Ranked, Stage

FLOAT32_BYTES, INT64_BYTES = 4, 8
RANKING_BYTES = 56
"""Bytes per pair of blocks while blocks are ranked: scores, ranks and order; measured."""

A = TypeVar("A", bound=Attention)
B = TypeVar("B", bound=BlockSparse)
R = TypeVar("R", bound=Ranked)


class AttentionMethod(ABC, Generic[A]):
    """An attention method with its parameters.

    Args:
        system: the parameters.
        gate_dim: width of the gates of a gated method that are not trained yet; None: the method
            reads it from its gates if it needs it.
    """

    def __init__(self, system: A, gate_dim: int | None = None):
        self.system = system

    def attach(self, model: PreTrainedModel) -> None:
        """Prepare for forwards of `model`; called once, when the method is applied."""

    def detach(self) -> None:
        """Undo `attach`."""


class Adjustment(AttentionMethod[A]):
    """Changes a setting of the attention that a converted model has; costs what that costs."""

    @abstractmethod
    def attach(self, model: PreTrainedModel) -> None:
        """Change the setting.

        Raises:
            ValueError: the model does not have this attention.
        """

    @abstractmethod
    def detach(self) -> None:
        """Restore the setting."""


class Computation(AttentionMethod[A]):
    """Computes attention in place of a model's layers. What it costs, batch 1, in bytes and
    floating point operations."""

    keeps_kv_cache = True
    """False: in replaced layers the state stands in for the keys and values of all tokens."""

    def replaces(self, index: int, layer: LayerShape) -> bool:
        """Whether it computes the attention of layer `index`."""
        return layer.is_full

    @abstractmethod
    def state_bytes(self, layer: LayerShape, tokens: int) -> int:
        """Bytes in the cache for one replaced layer after `tokens` tokens, besides the keys and
        values of all tokens."""

    @abstractmethod
    def workspace_bytes(self, layer: LayerShape, tokens: int, new_tokens: int) -> int:
        """Peak bytes of temporary tensors in one replaced layer while `new_tokens` of the
        prompt's `tokens` are prefilled."""

    @abstractmethod
    def attention_flops(self, layer: LayerShape, tokens: int) -> tuple[float, float]:
        """Operations of one replaced layer: of a prefill of `tokens`, and of decoding one token
        after it."""

    @abstractmethod
    def decode_density(self, tokens: int) -> float:
        """Share of the cache that one decoded token reads in a replaced layer, 0-1. An upper bound
        where the text decides."""


class Conversion(Computation[A]):
    """Becomes part of a model (`models:`) and is saved with its weights."""

    @abstractmethod
    def convert(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of `model` with this attention and new, initialised parameters.

        Raises:
            ValueError: the model cannot be converted.
        """


class Terms(TypedDict, total=False):
    """What a layer adds to plain attention, as arguments of `attend`."""

    scaling: float | None
    softcap: float | None
    sinks: Tensor | None


class Forward:
    """One forward of the model: what its sparse layers share.

    Args:
        state: the method's tensors in the cache.
        prompt_tokens: tokens that the cache holds once the prompt is complete; 0: unknown.
        keeps_choices: keep the choice of every layer, for layers that a backward pass computes
            again; otherwise only the latest one.
    """

    def __init__(self, state: MethodState, prompt_tokens: int = 0, keeps_choices: bool = False):
        self.state, self.prompt_tokens = state, prompt_tokens
        self.keeps_choices = keeps_choices
        self.shared: dict[str, Tensor] = {}
        """Tensors that a method passes from one layer to the next within this forward."""
        self.terms: Terms = {}
        """Of the current layer."""
        self._blocks: Blocks | None = None
        self._is_over = False
        self._choices: dict[int, Tensor | None] = {}
        self._computed: set[int] = set()
        self._query: ReferenceType[Tensor] | None = None

    def end(self) -> None:
        """Mark the end of the forward: a layer that is computed later is computed again."""
        self._is_over = True
        self.shared.clear()

    def repeats(self, layer: int, query: Tensor) -> bool:
        """Whether the layer is computed again, so that its choice is known and its state final.

        Gradient checkpointing computes layers again after the forward; some families attend twice
        with the same queries (DiffLlama).

        Raises:
            ValueError: the layer is computed again within the forward, with other queries.
        """
        if self._is_over:
            return True
        if layer not in self._computed:
            return False
        if layer in self._choices and self._query is not None and self._query() is query:
            return True
        raise ValueError(
            f"model: layer {layer} attends several times in one forward; block-sparse attention "
            "needs one time per layer; choose a model of another family"
        )

    def choice(self, layer: int) -> Tensor | None:
        """The blocks chosen for a layer that repeats, as `record` got them."""
        return self._choices[layer]

    def record(self, layer: int, query: Tensor, chosen: Tensor | None) -> None:
        """Record the blocks chosen for a layer (as `choose` returns them); None: all."""
        if not self.keeps_choices:
            self._choices.clear()
        self._choices[layer] = chosen
        self._computed.add(layer)
        # Weak: queries of a long prompt are large.
        self._query = ref(query)

    @property
    def has_blocks(self) -> bool:
        """Whether a sparse layer ran already."""
        return self._blocks is not None

    @property
    def blocks(self) -> Blocks:
        """The blocks of this forward, the same for all layers."""
        if self._blocks is None:
            raise RuntimeError("no sparse layer ran in this forward")
        return self._blocks

    @blocks.setter
    def blocks(self, blocks: Blocks) -> None:
        self._blocks = blocks

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each batch row's whole prompt, from its first real token on. Prompt tokens yet
        to come count as real."""
        mask = self.blocks.mask
        to_come = max(0, self.prompt_tokens - mask.total)
        return [end - first + to_come for first, end in zip(mask.first, mask.end, strict=True)]

    @property
    def is_decode(self) -> bool:
        """One new token after the prompt; after any tokens if the prompt's length is unknown."""
        mask = self.blocks.mask
        return mask.length == 1 and mask.start >= max(1, self.prompt_tokens)

    @property
    def stage(self) -> Stage:
        """Decode or prefill."""
        return "decode" if self.is_decode else "prefill"


class Selector(Computation[B]):
    """Exact attention over blocks of keys that the method chooses, applied at evaluation."""

    chooses_by_token = False
    """True: what a token attends to does not depend on the tokens computed in the same forward."""

    @abstractmethod
    def scores(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> Tensor | None:
        """Score each earlier block for each row of blocks.

        Args:
            layer: number of the layer.
            query: [batch, heads, new tokens, d], after RoPE.
            key: [batch, kv heads, all tokens, d], after RoPE.
            forward: of the model.

        Returns:
            One score for all heads [batch, rows, blocks], or one per kv head or head [batch,
            choices, rows, blocks]. None: the layer stays dense in this forward.
        """

    def observe(self, layer: int, query: Tensor, key: Tensor, forward: Forward) -> None:
        """Update the state in a forward of a dense stage; arguments as of `scores`.

        Override to save work: scoring is right for any method, as it updates the state too.
        """
        self.scores(layer, query, key, forward)

    @abstractmethod
    def sparse_prefill_density(self, tokens: int) -> float:
        """Kept / causal pairs of a replaced layer in a sparse prefill, 0-1. An upper bound where
        the text decides."""

    @abstractmethod
    def sparse_decode_density(self, tokens: int) -> float:
        """As `decode_density`, in a sparse decode."""

    @abstractmethod
    def selection_flops(self, layer: LayerShape, tokens: int) -> float:
        """Operations that choosing blocks takes in one layer's sparse prefill."""

    @abstractmethod
    def selection_bytes(self, layer: LayerShape, tokens: int, new_tokens: int) -> int:
        """Peak bytes of temporary tensors for choosing blocks in one layer."""

    def replaces(self, index: int, layer: LayerShape) -> bool:
        return layer.is_full and index >= self.system.dense_layers

    def prefill_density(self, tokens: int) -> float:
        """Kept / causal pairs of a replaced layer in a prefill, 0-1. An upper bound where the text
        decides."""
        return 1.0 if self.system.is_dense("prefill") else self.sparse_prefill_density(tokens)

    def decode_density(self, tokens: int) -> float:
        return 1.0 if self.system.is_dense("decode") else self.sparse_decode_density(tokens)

    def attention_flops(self, layer: LayerShape, tokens: int) -> tuple[float, float]:
        prefill = layer.pair_flops * layer.pairs(tokens) * self.prefill_density(tokens)
        decode = layer.pair_flops * tokens * self.decode_density(tokens)
        if not self.system.is_dense("prefill"):
            prefill += self.selection_flops(layer, tokens)
        return prefill, decode

    def workspace_bytes(self, layer: LayerShape, tokens: int, new_tokens: int) -> int:
        # Copies of queries, keys, values and outputs, arranged in blocks.
        queries = new_tokens * layer.heads * layer.key_dim * layer.item_bytes
        copies = 3 * queries + tokens * layer.kv_row_bytes
        return copies + self.selection_bytes(layer, tokens, new_tokens)

    def chooses_by_past(self, stage: Stage) -> bool:
        """Whether rows choose by the scores of the row before, see attention/causal_choice.py."""
        return False

    def count_blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.system.block_size)


class RankedSelector(Selector[R]):
    """Keeps a number of blocks per row, those with the highest scores."""

    def sparse_prefill_density(self, tokens: int) -> float:
        blocks = self.count_blocks(tokens)
        rows = np.arange(1, blocks + 1)
        kept = np.minimum(self.kept_in_prefill(blocks), rows)
        return min(1.0, float(kept.sum() / rows.sum()))

    def sparse_decode_density(self, tokens: int) -> float:
        blocks = self.count_blocks(tokens)
        return self.most_kept(blocks) / blocks

    @abstractmethod
    def own_state_bytes(self, layer: LayerShape, tokens: int) -> int:
        """As `state_bytes`, of the tensors that the method itself keeps."""

    def state_bytes(self, layer: LayerShape, tokens: int) -> int:
        past = 0
        if self.system.choose == "causal" and not self.system.is_dense("prefill"):
            past = FLOAT32_BYTES * self.choices(layer) * self.count_blocks(tokens) + INT64_BYTES
        return self.own_state_bytes(layer, tokens) + past

    def kept_in_prefill(self, blocks: int) -> NDArray[np.number]:
        """Blocks that each of `blocks` rows keeps; more than the row has counts as all."""
        return _ranked_counts(self.system.density, self.system.top_k_blocks, blocks)

    def most_kept(self, blocks: int) -> int:
        """The most of `blocks` blocks that a row keeps by rank."""
        return min(blocks, self.system.kept_blocks(blocks - 1))

    def selection_bytes(self, layer: LayerShape, tokens: int, new_tokens: int) -> int:
        # Float32 queries, and a ranking of blocks for each choice.
        queries = new_tokens * layer.heads * layer.key_dim
        pairs = self.count_blocks(tokens) * self.count_blocks(new_tokens)
        return FLOAT32_BYTES * queries + RANKING_BYTES * pairs * self.choices(layer)

    def chooses_by_past(self, stage: Stage) -> bool:
        return self.system.choose == "causal" and stage == "prefill"

    def choices(self, layer: LayerShape) -> int:
        """Rankings per row in a prefill: 1 for all heads, or one per kv head or head."""
        return 1


@lru_cache(maxsize=64)
def _ranked_counts(density: float | None, top_k: int, blocks: int) -> NDArray[np.int64]:
    if density is None:
        return np.full(blocks, top_k)
    share = Fraction(str(density))
    counts = [-(-share.numerator * row // share.denominator) for row in range(1, blocks + 1)]
    return np.array(counts)


def count_choices(choices: Choices, heads: int, kv_heads: int) -> int:
    """Choices of blocks per row for a key `choices`."""
    return {"layer": 1, "group": kv_heads, "head": heads}[choices]


def method_of(system: Attention, gate_dim: int | None = None) -> AttentionMethod:
    """The method that computes `system`.

    Args:
        gate_dim: width of gates that are not trained yet.
    """
    return importlib.import_module(system.module).Method(system, gate_dim)


def computation_of(system: Attention, gate_dim: int | None = None) -> Computation:
    """`method_of` for a system that computes attention, so has costs (`adjusts` is None)."""
    method = method_of(system, gate_dim)
    if not isinstance(method, Computation):
        raise TypeError(
            f"{system.module}.Method: is not a Computation; subclass one, or set `adjusts`"
        )
    return method
