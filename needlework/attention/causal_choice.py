"""`choose: causal`: rows of blocks choose by the scores of the row before, so from the past alone.

A row's scores pool all its queries and the keys of its own block, so by them an early token of the
block attends to what a later one selects. The scores of the row before are complete when the row
begins. Decode chooses with the token's own query and stays as it is.
"""

import torch
from torch import Tensor

from needlework.attention.base import Forward


def past_scores(scores: Tensor, layer: int, forward: Forward) -> Tensor:
    """The scores by which the rows of a prefill choose: each row's are those of the row before.

    Stores the scores of the last complete row in the state, for the next chunk: `past`
    [batch, ..., blocks], and `past_row` [batch], its number.

    Args:
        scores: [batch, ..., rows, blocks], see `Selector.scores`.

    Raises:
        ValueError: the state lacks the row before the first one.
    """
    blocks, state = forward.blocks, forward.state.tensors.setdefault(layer, {})
    first = torch.full_like(scores[..., :1, :], -torch.inf)
    if any(blocks.begin):
        rows = state["past_row"].tolist() if "past_row" in state else []
        if rows != [begin - 1 for begin in blocks.begin]:
            raise ValueError(
                "past_key_values: decode or crop changed the blocks before these tokens, whose "
                "scores choose: causal needs; start with an empty cache, or use choose: block"
            )
        width = min(state["past"].shape[-1], blocks.count)
        first[..., 0, :width] = state["past"][..., :width]
    extended = torch.cat([first, scores], -2)
    # Row i of `extended` is the row before row i.
    complete = [max(0, blocks.mask.total - n) // blocks.size for n in blocks.mask.first]
    last = [n - begin for n, begin in zip(complete, blocks.begin, strict=True)]
    state["past"] = torch.stack([extended[b, ..., row, :] for b, row in enumerate(last)])
    state["past_row"] = torch.tensor([n - 1 for n in complete], device=scores.device)
    return extended[..., :-1, :]
