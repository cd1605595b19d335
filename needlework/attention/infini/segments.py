"""Layout of a forward's tokens over the segments of Infini-attention.

A row's real tokens are numbered 0, 1, ... across forwards; padding has no number. Token t belongs
to segment (t + offset) // S: an offset above 0 shortens the first segment to S - offset tokens.
Slots of a segment fill from 0 on, so a shortened or unfinished segment has its empty slots at the
end, where causal attention never looks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def end_offset(tokens: Tensor, segment_length: int) -> Tensor:
    """The offset that makes a prompt of `tokens` tokens end in the middle of a segment.

    Args:
        tokens: prompt lengths, int64 [B].
        segment_length: S.

    Returns:
        int64 [B], 0 to S - 1.
    """
    return (segment_length // 2 - tokens) % segment_length


@dataclass
class Segments:
    """B rows of n columns laid out over N segments of S slots.

    The first of the N segments is the one left unfinished by the previous forward; its earlier
    tokens come from the cache.
    """

    length: int
    """S."""
    number: int
    """N."""
    slot: Tensor
    """int64 [B, n]: the column's slot in its segment; 0 for padding."""
    index: Tensor
    """int64 [B, n]: segment * S + slot; N * S for padding."""
    filled: Tensor
    """bool [B, N, S]: slots that hold a token after this forward."""
    has_memory: Tensor
    """bool [B, N]: an earlier segment is finished, so memory is not empty."""
    finished: Tensor
    """int64 [B]: how many of the N segments are full after this forward."""
    any_finished: bool
    """Whether `finished` is above 0 in any row."""

    @classmethod
    def place(cls, real: Tensor, seen: Tensor, offset: Tensor, length: int) -> "Segments":
        """Lay out new columns after `seen` earlier tokens.

        Args:
            real: bool [B, n], false for padding.
            seen: int64 [B], real tokens of earlier forwards.
            offset: int64 [B], tokens by which the first segment is shortened.
            length: S.
        """
        # Numbered from `offset`, every segment has S tokens, with the empty slots before token 0.
        start = (seen + offset)[:, None]
        shifted = start + real.cumsum(1) - 1
        end = start[:, 0] + real.sum(1)
        first = start // length
        segment = shifted // length
        slot = shifted % length - torch.where(segment == 0, offset[:, None], 0)
        finished = end // length - first[:, 0]
        number = max(int(((end - 1) // length - first[:, 0]).max()) + 1, 1)

        absolute = first + torch.arange(number, device=real.device)
        begin = torch.maximum(absolute * length, offset[:, None])
        stop = torch.minimum((absolute + 1) * length, end[:, None])
        filled = torch.arange(length, device=real.device) < (stop - begin)[..., None]
        return cls(
            length=length,
            number=number,
            slot=slot.where(real, 0),
            index=((segment - first) * length + slot).where(real, number * length),
            filled=filled,
            has_memory=absolute > 0,
            finished=finished,
            any_finished=bool((finished > 0).any()),
        )

    def to_slots(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Move columns to slots: [B, h, n, D] to [B, N, h, S, D].

        Args:
            x: keys, queries or values of the new columns.
            before: [B, h, S, D], the unfinished segment so far.
        """
        rows, heads, _, dim = x.shape
        slots = x.new_zeros(rows, heads, self.number * self.length + 1, dim)
        if before is not None:
            slots[:, :, : self.length] = before
        # index_copy moves whole rows; scatter would index every element.
        first = torch.arange(rows * heads, device=x.device).view(rows, heads, 1) * slots.shape[2]
        index = (first + self.index[:, None]).flatten()
        slots = slots.flatten(0, 2).index_copy(0, index, x.flatten(0, 2))
        slots = slots.view(rows, heads, -1, dim)[:, :, :-1]
        return slots.unflatten(2, (self.number, self.length)).transpose(1, 2)

    def to_columns(self, x: Tensor) -> Tensor:
        """Move slots to columns: [B, N, h, S, D] to [B, n, h, D]; padding gets arbitrary values."""
        slots = x.transpose(2, 3).flatten(1, 2)
        index = self.index.clamp_max(slots.shape[1] - 1)[:, :, None, None]
        return slots.gather(1, index.expand(-1, -1, *slots.shape[2:]))
