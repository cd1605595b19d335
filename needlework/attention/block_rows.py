"""Tensors with an entry for every block, kept up to date as forwards bring more rows."""

from torch import Tensor
from torch.nn import functional

from needlework.attention.blocks import Blocks


def write_rows(held: Tensor | None, rows: Tensor, blocks: Blocks) -> Tensor:
    """`held` [batch, ..., blocks, x] with the forward's rows [batch, ..., rows, x] put in.

    What `held` has beyond the blocks there are (the cache was cropped) is cut off; x becomes that
    of the rows.
    """
    if held is None:
        return rows
    more = blocks.count - held.shape[-2], rows.shape[-1] - held.shape[-1]
    if any(more):
        held = functional.pad(held, (0, more[1], 0, more[0]))
    for b, begin in enumerate(blocks.begin):
        held[b, ..., begin : begin + blocks.rows, :] = rows[b]
    return held
