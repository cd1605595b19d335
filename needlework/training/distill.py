"""Training of gates: a frozen model's own attention teaches them which blocks it looks at."""

from functools import partial
from itertools import islice

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from needlework.attention.apply import stock_attention
from needlework.attention.blocks import Blocks
from needlework.attention.gather import Terms
from needlework.attention.masks import LazyMask
from needlework.attention.rotation import Rotation
from needlework.attention.seer_gates import Gates, pool_keys
from needlework.config.gates import SeerGates
from needlework.config.systems import BlockSparse
from needlework.config.training import Distill, Loop
from needlework.training.finetune import collate, draw, encode
from needlework.training.loop import IGNORED, Batch, train, warmup_cosine
from needlework.training.tile_targets import decode_targets, prefill_targets

NAME = "needlework_distill"
"""Of the attention and mask functions registered with transformers, and of the forward argument."""
LOSS_SCALE = 10


def distill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: pl.DataFrame,
    config: SeerGates,
    seed: int,
) -> tuple[Gates, pl.DataFrame, pl.DataFrame]:
    """Gates for `model`, trained as SeerAttention's (Gao et al., 2024): 10 KL(attention || gate).

    Args:
        model: any causal language model with RoPE; left as it was.
        tokenizer: has an eos_token, which ends every row.
        rows: columns prompt and answer (text); the whole text is learnt from.
        config: the gates' shape, and the recipe.
        seed: of the gates' first weights, the order of rows and the tokens that decode gates learn.

    Returns:
        The gates; metrics and measurements of `loop.train`.

    Raises:
        ValueError: a row longer than sequence_length, a tokenizer with no eos_token, or a model
            that gates cannot be made for.
    """
    recipe = config.distill
    encoded = encode(tokenizer, rows, recipe.sequence_length)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gates = Gates.new(
            model, block_size=config.block_size, gate_dim=config.gate_dim, stages=config.stages
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = islice(draw(range(len(encoded)), recipe.batch_size, generator), recipe.steps)
    with Lesson(model, gates, recipe, generator) as lesson:
        metrics, measurements = train(
            gates,
            (collate([encoded[n] for n in numbers], pad) for numbers in drawn),
            Loop(clip=recipe.clip, log_every=recipe.log_every),
            steps=recipe.steps,
            groups=[
                {"params": [*gates.parameters()], "lr": recipe.learning_rate, "weight_decay": 0.0}
            ],
            schedule=partial(
                warmup_cosine,
                steps=recipe.steps,
                warmup=recipe.warmup_steps,
                final=recipe.final_learning_rate_ratio,
            ),
            loss=lambda gates, part, batch: lesson.loss(part),
            description="distilling",
        )
    return gates, metrics, measurements


class Lesson:
    """A frozen model whose layers teach their gates as they compute, one layer after another."""

    def __init__(
        self, model: PreTrainedModel, gates: Gates, recipe: Distill, generator: torch.Generator
    ):
        self.model, self.gates, self.recipe = model, gates, recipe
        self.system = BlockSparse(block_size=gates.description.block_size)
        self._generator = generator
        self._losses: list[Tensor] = []

    def __enter__(self) -> "Lesson":
        self.rotation = Rotation(self.model)
        self.stock = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        return self

    def __exit__(self, *_) -> None:
        self.rotation.remove()
        self.model.set_attn_implementation(self.stock)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch of `collate`, a scalar.

        Its gradients are known when it is: a layer's are taken before the next layer computes, so
        that memory holds the tiles of one layer at a time.
        """
        self._losses, self._blocks = [], None
        self._answers = int((batch["labels"] != IGNORED).sum(1).min())
        with torch.no_grad():
            self.model.base_model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
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
            self._rows = self._drawn_rows(self._blocks)
            self._tokens = self._drawn_tokens(self._blocks)
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

    def _starts(self, blocks: Blocks) -> Tensor:
        """Tokens of each row of the batch that are left out [batch, 1]."""
        lengths = blocks.mask.total - blocks.first[:, None]
        return (lengths * self.recipe.skipped_share).floor().long()

    def _drawn_rows(self, blocks: Blocks) -> Tensor:
        """Rows of blocks that prefill gates learn from [n] int64: one of each of n equal stretches
        of what the shortest text does not leave out."""
        first = int(self._starts(blocks).min()) // blocks.size
        n = min(self.recipe.prefill_rows, blocks.rows - first)
        drawn = torch.rand(n, generator=self._generator).to(blocks.device)
        drawn = (torch.arange(n, device=blocks.device) + drawn) / n * (blocks.rows - first)
        return (drawn.long() + first).clamp_max(blocks.rows - 1)

    def _drawn_tokens(self, blocks: Blocks) -> Tensor:
        """Tokens that decode gates learn from, counted from the first real one [batch, n] int64:
        one of each of decode_queries equal stretches of the text, and the last tokens, which are
        answers in every row."""
        starts = self._starts(blocks)
        lengths = blocks.mask.total - blocks.first[:, None]
        n = min(self.recipe.decode_queries, blocks.mask.total)
        drawn = torch.rand(len(starts), n, generator=self._generator).to(blocks.device)
        stretches = (torch.arange(n, device=blocks.device) + drawn) / n
        text = torch.minimum((stretches * (lengths - starts)).long() + starts, lengths - 1)
        answers = torch.arange(-self._answers, 0, device=blocks.device) + lengths
        return torch.cat([text, answers], 1)

    def _prefill_loss(
        self,
        gate: nn.Module,
        query: Tensor,
        key: Tensor,
        plain: Tensor,
        pools: Tensor,
        terms: Terms,
    ) -> Tensor:
        blocks, size = self._blocks, self.system.block_size
        starts, rows = -(-self._starts(blocks) // size), self._rows
        with torch.no_grad():
            target = prefill_targets(query, key, blocks, terms, rows)
            means = (blocks.of_queries(plain).sum(3) / blocks.seen)[:, :, rows]
        number = blocks.number[:, rows]
        logits = gate(
            means,
            pools,
            self.rotation.at(number * size, self.gates.description.gate_dim),
            self._angles_of_blocks(),
        )
        counts = (number >= starts) & blocks.is_new[:, rows].any(-1)
        return _divergence(target, logits, number, counts.float())

    def _decode_loss(
        self,
        gate: nn.Module,
        query: Tensor,
        key: Tensor,
        plain: Tensor,
        pools: Tensor,
        terms: Terms,
    ) -> Tensor:
        blocks, tokens = self._blocks, self._tokens
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
        number = tokens // self.system.block_size
        share, n = self.recipe.answer_share, tokens.shape[1] - self._answers
        weights = torch.full((tokens.shape[1],), (1 - share) / n, device=tokens.device)
        weights[n:] = share / self._answers
        return _divergence(target, logits, number, weights.expand_as(number))

    def _angles_of_blocks(self) -> tuple[Tensor, Tensor]:
        blocks = self._blocks
        firsts = torch.arange(blocks.count, device=blocks.device)[None] * blocks.size
        return self.rotation.at(firsts, self.gates.description.gate_dim)


def _divergence(target: Tensor, logits: Tensor, number: Tensor, weights: Tensor) -> Tensor:
    """KL(target || softmax of causal logits) [batch, heads, rows, blocks], a mean over heads, and
    over rows by `weights` [batch, rows]; row r is block number[., r]."""
    future = torch.arange(logits.shape[-1], device=logits.device) > number[..., None]
    gate = logits.masked_fill(future[:, None], -torch.inf).log_softmax(-1)
    each = kl_div(gate.masked_fill(future[:, None], 0), target, reduction="none").sum(-1)
    # No row counts where all that were drawn lie beyond a short text's end.
    return (each.mean(1) * weights).sum() / weights.sum().clamp_min(torch.finfo(each.dtype).tiny)


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
