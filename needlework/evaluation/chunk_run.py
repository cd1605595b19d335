"""One run through a text, chunk by chunk: state, memory, and what is saved of both."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from needlework.attention.apply import Handle
from needlework.config.systems import Window
from needlework.evaluation.carried import carried_by
from needlework.evaluation.exactness import check, tokens_to_check
from needlework.evaluation.frozen import numbered, on_cpu
from needlework.evaluation.journal import Journal
from needlework.evaluation.memory import (
    begin_peak,
    give_back,
    has_room,
    is_out_of_memory,
    used_bytes,
)
from needlework.evaluation.reader import Reader, documents_of
from needlework.evaluation.tally import Chunk, Tally
from needlework.evaluation.token_losses import TokenLosses

_log = logging.getLogger(__name__)
MOST_ADAPTIVE_TOKENS = 2**17
_TRIES = 12
_PATIENCE = 16
_BLOCKS_TO_CHECK = 16


@dataclass(frozen=True)
class Reading:
    """How a text is read."""

    chunk_size: int
    overlap: int = 0
    windows_at_once: int = 1
    adaptive: bool = False
    separate_documents: bool = False
    reach: int = 0
    """Tokens of the model's segment or window, behind which something is left; 0: nothing is."""


@dataclass
class _Step:
    """Tokens of the next forward."""

    ids: Tensor
    """int64 [windows, n]."""
    targets: Tensor
    """int64 [windows, m]."""
    first: int
    """Index of the logit for the first target."""
    first_token: int
    """Position of the first target of the first window."""
    passed: int
    """Tokens that lie behind once it is done."""


class ChunkRun:
    """A run; `mode` says how it reads, `size` and `overlap` what memory has left of them.

    Args:
        model: in eval mode.
        handle: the system that is on it.
        device: that of its input.
        reading: the settings.
    """

    def __init__(
        self, model: nn.Module, handle: Handle | None, device: torch.device, reading: Reading
    ):
        self._model, self._handle, self._device = model, handle, device
        self._reading, self._losses = reading, TokenLosses(model)
        self.size, self.overlap = reading.chunk_size, reading.overlap
        self.windows_at_once = reading.windows_at_once
        # Chunks in a row that went through, and how many must before a larger one is tried.
        self._calm, self._patience = 0, _PATIENCE
        self._largest, self._is_enlarged = (self.size, self.windows_at_once), False
        self._carried = None if self.overlap else carried_by(model, handle)
        self.mode = self._find_mode()
        self.is_checked = self.mode == "strided"
        # Chunks of block-sparse systems end where blocks do; the window's rule is by token.
        of_blocks = handle is not None and not isinstance(handle.system, Window)
        self._granule = handle.system.block_size if of_blocks and self._carried else 1
        embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
        if isinstance(model, PreTrainedModel):
            embedding = model.get_input_embeddings()
        self._vocabulary = None if embedding is None else embedding.num_embeddings

    def chunks(
        self, data: Any, max_tokens: int | None, tally: Tally, journal: Journal | None
    ) -> Iterator[Chunk]:
        """As StreamingEvaluator.chunks."""
        saved = journal.load() if journal is not None else None
        told, tensors = saved or ({"document": 0}, {})
        together = not self._reading.separate_documents
        for number, pieces in enumerate(documents_of(data, together, max_tokens)):
            reader = Reader(pieces, self._vocabulary)
            if number < told["document"]:
                for _ in pieces:
                    pass
                continue
            if self._carried is not None:
                self._carried.reset()
            if saved is not None:
                self._resume(told, tensors, reader, tally)
                saved = None
            elif reader.ahead(2).size == 2:
                self._prepare(reader)
            while (step := self._next(reader)) is not None:
                for chunk in self._do(step, number, reader, tally):
                    tally.add(chunk)
                    yield chunk
                if journal is not None and journal.is_due:
                    self._save(journal, number, reader, tally)

    def _find_mode(self) -> Literal["state", "cache", "strided"]:
        if self._carried is None:
            return "strided"
        grows = self._patiently(self._grows, 1)
        self._carried.reset()
        return "cache" if grows else "state"

    def _grows(self, tokens: int) -> bool:
        """Whether state grows from one forward to the next."""
        self._carried.reset()
        for _ in range(2):
            ids = torch.zeros(1, tokens, dtype=torch.long)
            self._forward(_Step(ids, ids, 0, 1, 0))
        return self._carried.grows

    def _next(self, reader: Reader) -> _Step | None:
        """The windows that come next; None at the document's end."""
        size, overlap, most = self.size, self.overlap, self.windows_at_once
        if self._carried is not None or (overlap and reader.at == 0):
            most = 1
        # Without an overlap the last logit is for the first token of the next chunk.
        ahead = 0 if overlap else 1
        stride = size - overlap
        found = torch.from_numpy(reader.ahead(size + (most - 1) * stride + ahead))
        context = overlap if reader.at else 1
        if len(found) <= (context if overlap else 1):
            return None
        is_full = len(found) >= size + ahead
        windows = found.unfold(0, size + ahead, stride) if is_full else found[None]
        ids, targets = windows[:, :-1], windows[:, context if overlap else 1 :]
        first = ids.shape[1] - targets.shape[1]
        passed = min(len(windows) * stride, len(found) - (0 if overlap else 1))
        first_token = reader.at + (context if overlap else 1)
        return _Step(ids, targets, first, first_token, passed)

    def _do(self, step: _Step, document: int, reader: Reader, tally: Tally) -> list[Chunk]:
        """Score the next windows, in smaller ones where memory is short, and pass them."""
        before = self._carried.snapshot(brief=True) if self._carried is not None else None
        started, short = time.perf_counter(), 0
        begin_peak()
        while True:
            try:
                losses = self._forward(step)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of `except`, where the failed forward's tensors are no longer held.
            short += 1
            if self._carried is not None:
                self._carried.restore(before)
            give_back()
            self._take_less(step, reader, len(tally), short)
            step = self._next(reader)
        seconds = time.perf_counter() - started
        reader.pass_by(step.passed)
        first_tokens = [
            step.first_token + i * (self.size - self.overlap) for i in range(len(losses))
        ]
        self._take_more()
        held = 0 if self._carried is None else self._carried.nbytes
        memory, chunks = used_bytes(), []
        for window, (first_token, row) in enumerate(zip(first_tokens, losses, strict=True)):
            if not bool(row.isfinite().all()):
                token = first_token + int((~row.isfinite()).int().argmax())
                raise ValueError(
                    f"chunk {len(tally) + window}, document {document}: the logits for token "
                    f"{token} are not finite; the model has overflown: try another dtype"
                )
            chunks.append(
                Chunk(
                    document=document,
                    first_token=first_token,
                    losses=row,
                    tokens_read=step.ids.shape[1],
                    out_of_memory=short if window == 0 else 0,
                    state_bytes=held,
                    seconds=seconds / len(losses),
                    memory_bytes=memory,
                )
            )
        return chunks

    @torch.no_grad()
    def _forward(self, step: _Step) -> Tensor:
        """Losses [windows, m] on the CPU; state is carried on."""
        ids, targets = step.ids.to(self._device), step.targets.to(self._device)
        tokens = ids.shape[1]
        if self._carried is None:
            known = {"use_cache": False} if isinstance(self._model, PreTrainedModel) else {}
        else:
            known = self._carried.arguments(tokens)
        losses, output = self._losses(ids, targets, step.first, **known)
        if self._carried is not None:
            self._carried.take(output, tokens)
        if self._handle is not None:
            self._handle.reset()
        return losses.cpu()

    def _take_less(self, step: _Step, reader: Reader, number: int, tries: int) -> None:
        """Half of the windows at once, else half of the chunk; the least is tried some times.

        Raises:
            ValueError: there is no less.
        """
        least = 2 if self.overlap else self._granule
        tokens = step.ids.shape[1] + (1 if self.overlap else 0)
        self._calm, self._patience = 0, 2 * self._patience
        if len(step.ids) > 1:
            self.windows_at_once = len(step.ids) // 2
        elif (half := tokens // 2 // least * least) > 0:
            context = max(1, min(self.overlap, half // 2)) if self.overlap else 0
            if reader.at:
                # The context's first tokens, scored already, are left out of the smaller window.
                reader.pass_by(self.overlap - context)
            self.size, self.overlap = half, context
        elif tries > _TRIES:
            raise ValueError(
                f"chunk {number}: out of memory at token {step.first_token} with {tokens} tokens, "
                "and no smaller chunk is to be had; use a smaller model or dtype, or a device "
                "with more memory"
            )
        _log.warning(
            "chunk %d: out of memory at token %d; going on with %d tokens, %d windows at once",
            number, step.first_token, self.size, self.windows_at_once,
        )  # fmt: skip

    def _take_more(self) -> None:
        """What memory was too short for may fit by now. A window, once smaller, stays so."""
        self._calm += 1
        if self._calm >= self._patience:
            self._calm = 0
            if self._carried is not None:
                self.size = min(2 * self.size, self._largest[0])
            else:
                self.windows_at_once = min(2 * self.windows_at_once, self._largest[1])

    def _prepare(self, reader: Reader) -> None:
        """Before the first chunk of a document: is it exact, and how large may it be."""
        if not self.is_checked:
            reach = self._reading.reach
            if self._granule > 1:
                reach = _BLOCKS_TO_CHECK * self._granule
            wanted = tokens_to_check(self.size, reach, self._vocabulary or 2**16)
            ids = torch.from_numpy(reader.ahead(wanted + 1))[None].to(self._device)
            # One chunk is all there is: nothing is carried.
            if ids.shape[1] > min(self.size, wanted) + 1:
                self._patiently(
                    lambda part: check(
                        self._losses, self._carried, ids[:, :part], self.size, self._granule
                    ),
                    ids.shape[1],
                )
                self.is_checked = True
        if self._reading.adaptive and not self._is_enlarged:
            self._enlarge(reader)
            self._largest, self._is_enlarged = (self.size, self.windows_at_once), True

    @torch.no_grad()
    def _patiently(self, do: Callable[[int], Any], tokens: int) -> Any:
        """`do` with as many tokens as memory allows: fewer each time it runs out of it.

        Raises:
            ValueError: it is out of memory with the fewest.
        """
        for attempt in range(_TRIES):
            try:
                return do(max(1, tokens >> attempt // 3))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            give_back()
        raise ValueError(
            f"out of memory with {max(1, tokens >> 3)} tokens, before the first chunk; use a "
            "smaller model or dtype, or a device with more memory"
        )

    def _enlarge(self, reader: Reader) -> None:
        """Double the chunk (strided: the windows at once) while it fits and the text is longer."""
        before, windows, size = used_bytes(), self.windows_at_once, self.size
        while has_room(before):
            if self._carried is None:
                windows *= 2
            else:
                size *= 2
            wanted = windows * size
            if wanted > MOST_ADAPTIVE_TOKENS or len(reader.ahead(wanted)) < wanted:
                break
            tokens = torch.zeros(windows, size, dtype=torch.long)
            try:
                self._forward(_Step(tokens, tokens, 0, 1, 0))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            self.windows_at_once, self.size = windows, size
        if self._carried is not None:
            self._carried.reset()
        give_back()
        _log.info("chunks of %d tokens, %d at once, fit", self.size, self.windows_at_once)

    def _save(self, journal: Journal, document: int, reader: Reader, tally: Tally) -> None:
        frozen, tensors = (None, []) if self._carried is None else self._carried.snapshot()
        told = {
            "document": document,
            "at": reader.at,
            "size": self.size,
            "overlap": self.overlap,
            "windows_at_once": self.windows_at_once,
            "memory": [self._calm, self._patience, self._largest],
            "state": frozen,
        }
        state = {f"state.{name}": x for name, x in on_cpu(tensors).items()}
        journal.save(told, {**state, **{f"tally.{k}": x for k, x in tally.tensors().items()}})

    @torch.no_grad()
    def _resume(self, told: dict, tensors: dict[str, Tensor], reader: Reader, tally: Tally) -> None:
        self.size, self.overlap = told["size"], told["overlap"]
        self.windows_at_once = told["windows_at_once"]
        self.is_checked = self._is_enlarged = True
        self._calm, self._patience, self._largest = told["memory"]
        reader.pass_by(told["at"])
        tally.restore(_part(tensors, "tally."))
        if self._carried is not None:
            state = numbered(_part(tensors, "state."), self._device)
            self._carried.restore((told["state"], state))
        _log.info("going on at document %d, token %d", told["document"], told["at"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
