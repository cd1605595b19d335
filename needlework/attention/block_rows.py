"""Tensors with one entry per block, updated as forwards bring more rows of blocks."""

from torch import Tensor
from torch.nn import functional

from needlework.attention.blocks import Blocks


def write_rows(stored: Tensor | None, rows: Tensor, blocks: Blocks) -> Tensor:
    """Write a forward's rows [batch, ..., rows, x] into `stored` [batch, ..., blocks, x].

    Returns a tensor with as many blocks as there are now (entries beyond a cropped cache are
    dropped), and with the last dimension of `rows`.
    """
    if stored is None:
        return rows
    added = blocks.count - stored.shape[-2], rows.shape[-1] - stored.shape[-1]
    if any(added):
        stored = functional.pad(stored, (0, added[1], 0, added[0]))
    if len(set(blocks.begin)) == 1:
        stored[..., blocks.begin[0] : blocks.begin[0] + blocks.rows, :] = rows
        return stored
    for b, begin in enumerate(blocks.begin):
        stored[b, ..., begin : begin + blocks.rows, :] = rows[b]
    return stored
