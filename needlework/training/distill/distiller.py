"""What gates learn by: a frozen model's attention, layer by layer, beside their scores."""

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from needlework.attention.apply import stock_attention
from needlework.attention.blocks import Blocks
from needlework.attention.kernels.gather import Terms
from needlework.attention.masks import LazyMask
from needlework.attention.rope import Rotation
from needlework.attention.seer.gates import Gates, pool_keys
from needlework.config.attention import BlockSparse
from needlework.training.distill.targets import decode_targets, prefill_targets
from needlework.training.loop import Batch

NAME = "needlework_distill"
"""Of the attention and mask functions registered with transformers, and of the forward argument."""
LOSS_SCALE = 10


class Lesson:
    """A frozen model whose layers teach their gates as they compute, one layer after another."""

    def __init__(self, model: PreTrainedModel, gates: Gates):
        self.model, self.gates = model, gates
        self.system = BlockSparse(block_size=gates.description.block_size)
        self._losses: list[Tensor] = []

    def __enter__(self) -> "Lesson":
        self.rotation = Rotation(self.model)
        self.stock = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        return self

    def __exit__(self, *_) -> None:
        self.rotation.remove()
        self.model.set_attn_implementation(self.stock)

    def loss(self, part: Batch, batch: Batch) -> Tensor:
        """What the rows `part` add to the loss of `batch`, both as of `batches`: a scalar.

        Its gradients are known when it is: a layer's are taken before the next layer computes, so
        that memory holds the tiles of one layer at a time.
        """
        self._losses, self._blocks, self._part = [], None, part
        self._totals = batch["block_weights"].sum(), batch["token_weights"].sum()
        with torch.no_grad():
            self.model.base_model(
                input_ids=part["input_ids"],
                attention_mask=part["attention_mask"],
                use_cache=False,
                **{NAME: self},
            )
        return torch.stack(self._losses).sum()

    def hear(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: LazyMask, terms: Terms
    ) -> None:
        """Teach the gates of the layer at hand, if it has any."""
        layer = module.layer_idx
        if layer not in self.gates.description.layers:
            return
        if self._blocks is None:
            self._blocks = Blocks(mask, self.system, query.device)
        blocks = self._blocks
        plain = self.rotation.undo(layer, query), self.rotation.undo(layer, key)
        pools = pool_keys(blocks.of_keys(plain[1]), blocks.is_new[:, None, ..., None])
        losses = []
        with torch.enable_grad():
            if self.gates.prefill:
                gate = self.gates.prefill[str(layer)]
                losses.append(self._prefill_loss(gate, query, key, plain[0], pools, terms))
            if self.gates.decode:
                gate = self.gates.decode[str(layer)]
                losses.append(self._decode_loss(gate, query, key, plain[0], pools, terms))
            self._losses.append(_with_gradients(LOSS_SCALE * sum(losses), self._parameters(layer)))

    def _parameters(self, layer: int) -> list[nn.Parameter]:
        stages = (self.gates.prefill, self.gates.decode)
        return [p for stage in stages if stage for p in stage[str(layer)].parameters()]

    def _prefill_loss(
        self,
        gate: nn.Module,
        query: Tensor,
        key: Tensor,
        plain: Tensor,
        pools: Tensor,
        terms: Terms,
    ) -> Tensor:
        blocks = self._blocks
        # Of a part, all rows may end before a block that the batch has.
        rows = self._part["blocks"][0].clamp_max(blocks.rows - 1)
        with torch.no_grad():
            target = prefill_targets(query, key, blocks, terms, rows)
            means = (blocks.of_queries(plain).sum(3) / blocks.seen)[:, :, rows]
        number = blocks.number[:, rows]
        logits = gate(
            means,
            pools,
            self.rotation.at(number * blocks.size, self.gates.description.gate_dim),
            self._angles_of_blocks(),
        )
        return _divergence(target, logits, number, self._part["block_weights"], self._totals[0])

    def _decode_loss(
        self,
        gate: nn.Module,
        query: Tensor,
        key: Tensor,
        plain: Tensor,
        pools: Tensor,
        terms: Terms,
    ) -> Tensor:
        blocks, tokens = self._blocks, self._part["tokens"]
        at = (tokens + blocks.first[:, None])[:, None, :, None]
        at = at.expand(-1, query.shape[1], -1, query.shape[-1])
        with torch.no_grad():
            target = decode_targets(query.gather(2, at), key, tokens, blocks, terms)
        logits = gate(
            plain.gather(2, at),
            pools,
            self.rotation.at(tokens, self.gates.description.gate_dim),
            self._angles_of_blocks(),
        )
        number = tokens // blocks.size
        return _divergence(target, logits, number, self._part["token_weights"], self._totals[1])

    def _angles_of_blocks(self) -> tuple[Tensor, Tensor]:
        blocks = self._blocks
        firsts = torch.arange(blocks.count, device=blocks.device)[None] * blocks.size
        return self.rotation.at(firsts, self.gates.description.gate_dim)


def _divergence(
    target: Tensor, logits: Tensor, number: Tensor, weights: Tensor, total: Tensor
) -> Tensor:
    """KL(target || softmax of causal logits) [batch, heads, rows, blocks], a mean over heads, and
    over rows by `weights` [batch, rows], divided by their `total`; row r is block number[., r]."""
    future = torch.arange(logits.shape[-1], device=logits.device) > number[..., None]
    gate = logits.masked_fill(future[:, None], -torch.inf).log_softmax(-1)
    each = kl_div(gate.masked_fill(future[:, None], 0), target, reduction="none").sum(-1)
    # No row counts where all that were drawn lie beyond a short text's end.
    return (each.mean(1) * weights).sum() / total.clamp_min(torch.finfo(each.dtype).tiny)


def _with_gradients(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """`loss` without what it was computed from, but for its gradients."""
    gradients = torch.autograd.grad(loss, parameters)
    known = sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True))
    return loss.detach() + (known - known.detach())


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """The function behind every attention layer: the model's own attention, overheard."""
    lesson: Lesson = kwargs.pop(NAME)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    terms = Terms(scale, 0.0, kwargs.get("softcap"), kwargs.get("s_aux"))
    lesson.hear(module, query, key, attention_mask, terms)
    return stock_attention(
        module, lesson.stock, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, LazyMask)
