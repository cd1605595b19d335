"""How far sketchwalk's preset `official` is from the released code, one difference at a time.

Queries and keys come from the embedded model's dense forward over prompts of niah_single_1. Each
variant replaces one part of the plain formulae below by what the released code does
(Escanord/SketchWalk): how far its walk R and its chosen blocks then are from ours.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from needlework.config.attention.sketchwalk import SketchWalk
from needlework.config.opening import ModelSpec
from needlework.config.tasks.niah import NiahSingle1
from needlework.models.checkpoint import open_model
from needlework.tasks.generate import Sampler, make_samples

MODEL = Path(__file__).resolve().parent.parent / "resources" / "needlework-tiny"
NAME = "needlework_record"
SYSTEM = SketchWalk(preset="official", dense_layers=0)
DECODED = 48
"""Last tokens of each prompt, which are decoded."""


@dataclass(frozen=True)
class Variant:
    """What is done as the released code does it."""

    masks_after_softmax: bool = False
    divides_by_block_size: bool = False
    averages_softmaxes: bool = False
    writes_columns: bool = False
    starts_from_own_row: bool = False
    sketches_in_bfloat16: bool = False


OURS = Variant()
VARIANTS = {
    "future blocks masked after the softmax": Variant(masks_after_softmax=True),
    "mean of the last block divided by the block size": Variant(divides_by_block_size=True),
    "block means sketched in bfloat16": Variant(sketches_in_bfloat16=True),
    "decode: mean of the softmaxes of 32 queries": Variant(averages_softmaxes=True),
    "decode: row and column of the current block are running means": Variant(writes_columns=True),
    "decode: the walk starts from the layer's own row": Variant(starts_from_own_row=True),
}


class Layer(NamedTuple):
    """One layer's queries and keys after RoPE [heads, n, d], float32, with the same heads."""

    query: Tensor
    key: Tensor


class Comparison(NamedTuple):
    """Of one row of R: KL(ours || variant) over past blocks in nats, and the overlap of the blocks
    that the quantile chooses (intersection over union), None if neither chooses any."""

    divergence: float
    overlap: float | None


def official_table(tokens: int = 2048, prompts: int = 4) -> str:
    """Markdown table of the differences, in prefill and in decode."""
    texts = [recorded(ids) for ids in prompt_ids(tokens, prompts)]
    lines = [
        "| as released | stage | KL, nats | overlap of chosen blocks |",
        "|---|---|---|---|",
    ]
    for name, variant in VARIANTS.items():
        stages = [("prefill", prefill_rows), ("decode", decode_rows)]
        for stage, compare in stages[name.startswith("decode") :]:
            rows = [row for layers in texts for row in compare(layers, variant)]
            kl = sum(row.divergence for row in rows) / len(rows)
            overlaps = [row.overlap for row in rows if row.overlap is not None]
            overlap = sum(overlaps) / len(overlaps)
            lines.append(f"| {name} | {stage} | {kl:.2g} | {100 * overlap:.1f} % |")
    n = [layers[0].key.shape[1] for layers in texts]
    extra = sum(rounding(count) for count in n) / len(n)
    layers, heads, d = len(texts[0]), *texts[0][0].key.shape[::2]
    lines += [
        "",
        f"Shares rounded up to blocks keep {100 * extra:.2f} % of all causal pairs more.",
        "",
        f"Embedded model ({layers} layers, {heads} heads of {d}), {len(n)} prompts of "
        f"niah_single_1 of {min(n):,} to {max(n):,} tokens, blocks of {SYSTEM.block_size}, no "
        f"dense layer; decode: the last {DECODED} tokens.",
    ]
    return "\n".join(lines) + "\n"


def prompt_ids(tokens: int, prompts: int) -> list[Tensor]:
    """Token ids of prompts; their lengths differ, and few are a multiple of the block."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    sampler = Sampler(
        NiahSingle1(), tokenizer, task_name="niah_single_1", length=tokens, depths=[50], seed=1
    )
    ids = [tokenizer.encode(text).ids for text in make_samples(sampler, prompts)["prompt"]]
    return [torch.tensor([row[: len(row) - 7 * i]]) for i, row in enumerate(ids)]


@torch.no_grad()
def recorded(ids: Tensor) -> list[Layer]:
    """Queries and keys of each layer in a dense forward."""
    model, _ = open_model(ModelSpec(path=MODEL))
    layers: list[Layer] = []

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        layers.append(Layer(query[0].float(), key[0].float().repeat_interleave(group, 0)))
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    model(ids, use_cache=False)
    return layers


def prefill_rows(layers: list[Layer], variant: Variant) -> list[Comparison]:
    """Every row but the last four, which keep all blocks."""
    walks = [prefill_walks(layers, each)[0] for each in (OURS, variant)]
    n, rows = layers[0].key.shape[1], len(walks[0][0])
    return [
        comparison(ours[row], theirs[row], row, n)
        for ours, theirs in zip(*walks, strict=True)
        for row in range(1, rows - SYSTEM.dense_last_rows)
    ]


def decode_rows(layers: list[Layer], variant: Variant) -> list[Comparison]:
    """The row of each decoded token."""
    walks = [decode_walks(layers, each) for each in (OURS, variant)]
    return [
        comparison(ours, theirs, len(ours) - 1, n)
        for (n, ours), (_, theirs) in zip(*walks, strict=True)
    ]


def comparison(ours: Tensor, theirs: Tensor, row: int, tokens: int) -> Comparison:
    """Compare two rows of R [blocks] of a prompt of `tokens` tokens."""
    p, q = (x[: row + 1].double() / x[: row + 1].sum() for x in (ours, theirs))
    kl = float((p * (p / q).log()).sum())
    chosen = [above_quantile(x[: row + 1], row, tokens) for x in (p, q)]
    union = (chosen[0] | chosen[1]).sum()
    return Comparison(kl, float((chosen[0] & chosen[1]).sum() / union) if union else None)


def above_quantile(walk: Tensor, row: int, tokens: int) -> Tensor:
    """Blocks that a row chooses, besides the sinks and local blocks that it always keeps."""
    size = SYSTEM.block_size
    number = torch.arange(row + 1)
    unranked, sinks, local = (
        math.ceil(share * tokens / size)
        for share in (SYSTEM.unranked_sink_share or 0, SYSTEM.sink_share, SYSTEM.local_share)
    )
    ranked = (number >= unranked) & (number <= row - local)
    if not ranked.any():
        return ranked
    limit = walk[ranked].quantile(SYSTEM.quantile)
    return ranked & (number >= sinks) & (walk > limit)


def prefill_walks(layers: list[Layer], variant: Variant) -> tuple[list[Tensor], list[Tensor]]:
    """R and W of each layer [blocks, blocks]."""
    walks: list[Tensor] = []
    steps = []
    for query, key in layers:
        queries, keys = (block_means(x, variant) for x in (query, key))
        step = softmax_sum(queries, keys, variant, is_causal=not variant.masks_after_softmax)
        walk = walks[-1] if walks else step
        for _ in range(SYSTEM.walk_steps):
            walk = damped(step, walk @ step)
        walks.append(walk)
        steps.append(step)
    return walks, steps


def decode_walks(layers: list[Layer], variant: Variant) -> list[tuple[int, Tensor]]:
    """(tokens so far, row of R [blocks]) of each decoded token in each layer."""
    n, size = layers[0].key.shape[1], SYSTEM.block_size
    start = n - DECODED
    prompt = [Layer(query[:, :start], key[:, :start]) for query, key in layers]
    _, steps = prefill_walks(prompt, variant)
    found = []
    for t in range(start, n):
        previous: Tensor | None = None
        for i, (query, key) in enumerate(layers):
            keys = block_means(key[:, : t + 1], variant)
            recent = query[:, max(0, t + 1 - SYSTEM.decode_queries) : t + 1]
            if not variant.averages_softmaxes:
                recent = recent.mean(1, keepdim=True)
            row = softmax_sum(recent, keys, variant, is_causal=False).mean(0)
            steps[i] = with_row(steps[i], row, t, variant)
            matrix = steps[i]
            walk = row if previous is None or variant.starts_from_own_row else previous
            for _ in range(SYSTEM.walk_steps):
                walk = damped(row, walk @ matrix)
            previous = walk
            found.append((t + 1, walk))
            if (t + 1) % size == 0 and not variant.writes_columns:
                # Once a block is full, its row is that of its mean query, as in prefill.
                queries = block_means(query[:, : t + 1], variant)[:, -1:]
                full = softmax_sum(queries, keys, variant, is_causal=False)[0]
                steps[i] = with_row(steps[i], full, t, variant)
    return found


def with_row(step: Tensor, row: Tensor, t: int, variant: Variant) -> Tensor:
    """W [blocks, blocks] with the row of token t's block, which may be new."""
    own = t // SYSTEM.block_size
    grown = torch.zeros(own + 1, own + 1)
    grown[: len(step), : len(step)] = step
    if not variant.writes_columns:
        grown[own] = row
        return grown
    if len(step) == own:
        grown[own] = row
    share = 1 / (t % SYSTEM.block_size + 1)
    grown[own] = (1 - share) * grown[own] + share * row
    grown[own] /= grown[own].sum()
    grown[:, own] = (1 - share) * grown[:, own] + share * row
    return grown / grown.sum(-1, keepdim=True)


def block_means(x: Tensor, variant: Variant) -> Tensor:
    """Mean of each block [heads, blocks, d]."""
    size, n = SYSTEM.block_size, x.shape[1]
    blocks = nn.functional.pad(x, (0, 0, 0, -n % size)).unflatten(1, (-1, size))
    counts = torch.full((blocks.shape[1], 1), size)
    if not variant.divides_by_block_size:
        counts[-1] = n - size * (len(counts) - 1)
    return blocks.sum(2) / counts


def softmax_sum(queries: Tensor, keys: Tensor, variant: Variant, *, is_causal: bool) -> Tensor:
    """Softmax of the scores of each head, summed over heads, rows of sum 1 [rows, blocks]."""
    d = keys.shape[-1]
    if variant.sketches_in_bfloat16:
        queries, keys = (hadamard(x.bfloat16()) for x in (queries, keys))
        scores = (queries @ keys.transpose(-1, -2)).float() * d**-0.5 / 100
    else:
        scores = queries @ keys.transpose(-1, -2) * (d / 100 * d**-0.5)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    total = scores.softmax(-1).sum(0)
    return total / total.sum(-1, keepdim=True)


def hadamard(x: Tensor) -> Tensor:
    """The Walsh-Hadamard transform of random signs of x, not scaled, in its dtype."""
    d = x.shape[-1]
    signs = torch.randint(0, 2, (d,), generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, half = x * signs, 1
    while half < d:
        low, high = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.stack([low + high, low - high], -2).flatten(-3)
        half *= 2
    return x


def damped(step: Tensor, advanced: Tensor) -> Tensor:
    """(1 - walk_damping) W + walk_damping R W."""
    return (1 - SYSTEM.walk_damping) * step + SYSTEM.walk_damping * advanced


def rounding(tokens: int) -> float:
    """Causal pairs that shares in whole blocks keep more than shares in tokens, over all pairs.

    Shares in tokens: the first tokens and the last ones before each token.
    """
    at = torch.arange(tokens)
    size = SYSTEM.block_size
    past = at[:, None] - at
    by_token = (at < int(SYSTEM.sink_share * tokens)) | (past < int(SYSTEM.local_share * tokens))
    sinks, local = (
        math.ceil(share * tokens / size) for share in (SYSTEM.sink_share, SYSTEM.local_share)
    )
    blocks = at // size
    by_block = (blocks < sinks) | (blocks[:, None] - blocks < local)
    causal = past >= 0
    kept = [int((mask & causal).sum()) for mask in (by_block, by_token)]
    return (kept[0] - kept[1]) / int(causal.sum())
