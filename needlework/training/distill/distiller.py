"""Distill gates layer by layer: each layer of a frozen model trains its gates as it computes."""

from functools import reduce
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from needlework.attention.apply import stock_attention
from needlework.attention.blocks import Blocks
from needlework.attention.kernels.gather import SoftmaxTerms
from needlework.attention.masks import LazyMask
from needlework.attention.rope import Rotation
from needlework.attention.seer.gates import Gates, pool_keys
from needlework.config.attention.base import BlockSparse
from needlework.training.distill.targets import decode_targets, prefill_targets
from needlework.training.loop import Batch

NAME = "needlework_distill"
"""Name of the attention and mask functions in transformers, and of the forward argument."""
LOSS_SCALE = 10


class _LayerInputs(NamedTuple):
    """Inputs of one layer's attention."""

    query: Tensor
    """After RoPE [batch, heads, tokens, d]."""
    key: Tensor
    """After RoPE [batch, kv heads, tokens, d]."""
    unrotated_query: Tensor
    pooled_keys: Tensor
    """See `pool_keys`."""
    terms: SoftmaxTerms
    blocks: Blocks


class GateDistiller:
    """Computes the distillation loss of gates on a frozen model; use it in a `with` block."""

    def __init__(self, model: PreTrainedModel, gates: Gates):
        self.model, self.gates = model, gates
        # Only the block size matters, so it is not a system with a `type`.
        self.system = BlockSparse(  # type: ignore[call-arg]
            block_size=gates.description.block_size
        )
        self._losses: list[Tensor] = []

    def __enter__(self) -> "GateDistiller":
        self.rotation = Rotation(self.model)
        self.stock = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.rotation.remove()
        self.model.set_attn_implementation(self.stock)

    def loss(self, part: Batch, batch: Batch) -> Tensor:
        """Contribution of the rows `part` to the loss of `batch`, both from `batches`: a scalar.

        Gradients are computed with the loss, each layer's before the next layer runs, so that only
        one layer's attention tiles are in memory at a time.
        """
        self._part, self._losses = part, []
        self._blocks: Blocks | None = None
        self._total_weights = batch["block_weights"].sum(), batch["token_weights"].sum()
        with torch.no_grad():
            self.model.base_model(
                input_ids=part["input_ids"],
                attention_mask=part["attention_mask"],
                use_cache=False,
                **{NAME: self},
            )
        return torch.stack(self._losses).sum()

    def on_attention(
        self, layer: int, query: Tensor, key: Tensor, mask: LazyMask, terms: SoftmaxTerms
    ) -> None:
        """Compute the loss of the current layer's gates, if it has any."""
        if layer not in self.gates.description.layers:
            return
        if self._blocks is None:
            self._blocks = Blocks(mask, self.system, query.device)
        blocks = self._blocks
        (unrotated_query,) = self.rotation.plain(layer, "query", query)
        (unrotated_key,) = self.rotation.plain(layer, "key", key)
        pooled_keys = pool_keys(blocks.of_keys(unrotated_key), blocks.is_new[:, None, ..., None])
        inputs = _LayerInputs(query, key, unrotated_query, pooled_keys, terms, blocks)
        losses = []
        with torch.enable_grad():
            if self.gates.prefill:
                losses.append(self._prefill_loss(self.gates.prefill[str(layer)], inputs))
            if self.gates.decode:
                losses.append(self._decode_loss(self.gates.decode[str(layer)], inputs))
            loss = LOSS_SCALE * reduce(torch.add, losses)
            self._losses.append(_with_gradients(loss, self._parameters(layer)))

    def _parameters(self, layer: int) -> list[nn.Parameter]:
        stages = (self.gates.prefill, self.gates.decode)
        return [p for stage in stages if stage for p in stage[str(layer)].parameters()]

    def _prefill_loss(self, gate: nn.Module, inputs: _LayerInputs) -> Tensor:
        blocks = inputs.blocks
        # The rows of a part may all end before a block that another part of the batch has.
        rows = self._part["blocks"][0].clamp_max(blocks.rows - 1)
        with torch.no_grad():
            target = prefill_targets(inputs.query, inputs.key, blocks, inputs.terms, rows)
            means = (blocks.of_queries(inputs.unrotated_query).sum(3) / blocks.seen)[:, :, rows]
        number = blocks.number[:, rows]
        logits = gate(
            means,
            inputs.pooled_keys,
            self._angles(number * blocks.size),
            self._block_angles(blocks),
        )
        weights = self._part["block_weights"]
        return _divergence(target, logits, number, weights, self._total_weights[0])

    def _decode_loss(self, gate: nn.Module, inputs: _LayerInputs) -> Tensor:
        query, blocks, tokens = inputs.query, inputs.blocks, self._part["tokens"]
        columns = (tokens + blocks.first[:, None])[:, None, :, None]
        columns = columns.expand(-1, query.shape[1], -1, query.shape[-1])
        with torch.no_grad():
            target = decode_targets(
                query.gather(2, columns), inputs.key, tokens, blocks, inputs.terms
            )
        logits = gate(
            inputs.unrotated_query.gather(2, columns),
            inputs.pooled_keys,
            self._angles(tokens),
            self._block_angles(blocks),
        )
        weights = self._part["token_weights"]
        # Decoding always keeps a token's own block, so the gate does not score it.
        last = tokens // blocks.size - 1
        return _divergence(target, logits, last, weights, self._total_weights[1])

    def _block_angles(self, blocks: Blocks) -> tuple[Tensor, Tensor]:
        return self._angles(torch.arange(blocks.count, device=blocks.device)[None] * blocks.size)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.rotation.at(positions, self.gates.description.gate_dim)


def _divergence(
    target: Tensor, logits: Tensor, last: Tensor, weights: Tensor, total_weight: Tensor
) -> Tensor:
    """KL(target || softmax of logits over the candidates), a scalar.

    Both are [batch, heads, rows, blocks]; the candidates of row r are the blocks up to last[., r],
    none if it is -1, and a row without candidates adds 0. The mean over heads is
    weighted over rows by `weights` [batch, rows] and divided by `total_weight`.
    """
    hidden = (torch.arange(logits.shape[-1], device=logits.device) > last[..., None])[:, None]
    # Finite, because the softmax of a row without candidates would not be a number.
    gate = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).log_softmax(-1)
    each = kl_div(gate.masked_fill(hidden, 0), target, reduction="none").sum(-1)
    # The total is 0 if all rows drawn are beyond a short text's end.
    return (each.mean(1) * weights).sum() / total_weight.clamp_min(torch.finfo(each.dtype).tiny)


def _with_gradients(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Compute the gradients of `loss` now and return it without its graph, but with them."""
    gradients = torch.autograd.grad(loss, parameters)
    linear = reduce(torch.add, [(p * g).sum() for p, g in zip(parameters, gradients, strict=True)])
    return loss.detach() + (linear - linear.detach())


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention function of every layer: show the distiller its inputs, then run the stock one."""
    distiller: GateDistiller = kwargs.pop(NAME)
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    terms = SoftmaxTerms(scale, 0.0, kwargs.get("softcap"), kwargs.get("s_aux"))
    distiller.on_attention(layer, query, key, attention_mask, terms)
    return stock_attention(
        module, distiller.stock, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, LazyMask)
