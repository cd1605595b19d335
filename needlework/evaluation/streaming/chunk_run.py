"""One run through a text, chunk by chunk: state, memory, and what is saved of both."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from needlework.attention.apply import Handle
from needlework.evaluation.streaming.accumulator import Accumulator, Chunk
from needlework.evaluation.streaming.checkpoint import Journal, other_text, part
from needlework.evaluation.streaming.document_reader import Reader
from needlework.evaluation.streaming.equivalence import check, tokens_to_check
from needlework.evaluation.streaming.kv_state import carried_by
from needlework.evaluation.streaming.model_limits import (
    require_no_end,
    require_positions,
    vocabulary_of,
)
from needlework.evaluation.streaming.snapshot import numbered, on_cpu
from needlework.evaluation.streaming.token_losses import TokenLosses
from needlework.evaluation.streaming.token_source import Pieces
from needlework.evaluation.streaming.windows import Reading, Step, next_step
from needlework.runtime.memory import (
    can_double_memory,
    free_cache,
    is_out_of_memory,
    peak_or_resident_bytes,
    reset_peak_memory,
    retry_on_oom,
)

_log = logging.getLogger(__name__)
MOST_ADAPTIVE_TOKENS = 2**17
_TRIES = 12
_PATIENCE, _MOST_PATIENCE = 4, 256
_TRIES_OF_A_WINDOW = 3
_TOKENS_AHEAD = 64
_BLOCKS_TO_CHECK = 16
_TOO_SMALL = (
    "out of memory with few tokens, before the first chunk; use a smaller model or dtype, or a "
    "device with more memory"
)


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
        self.window_batch_size = reading.window_batch_size
        # Chunks in a row that went through, and how many must before a larger one is tried.
        self._calm, self._patience, self._is_trial = 0, _PATIENCE, False
        self._largest, self._is_enlarged = (self.size, self.window_batch_size), False
        self._carried = None if self.overlap else carried_by(model, handle)
        self.mode = self._find_mode()
        self.is_checked = self.mode == "strided"
        self._granule = handle.system.chunk_multiple if handle and self._carried else 1
        self._vocabulary = vocabulary_of(model)

    def chunks(
        self, documents: Iterable[Pieces], accumulator: Accumulator, journal: Journal | None
    ) -> Iterator[Chunk]:
        """As StreamingEvaluator.chunks."""
        saved = journal.load() if journal is not None else None
        told, tensors = saved or ({"document": 0}, {})
        for number, pieces in enumerate(documents):
            reader = Reader(pieces, self._vocabulary)
            if number < told["document"]:
                for _ in pieces:
                    pass
                continue
            if self._carried is not None:
                self._carried.reset()
            if saved is not None:
                self._resume(told, tensors, reader, accumulator)
                saved = None
            elif reader.ahead(2).size == 2:
                self._prepare(reader)
            while (step := self._next(reader)) is not None:
                for chunk in self._do(step, number, reader, accumulator):
                    accumulator.add(chunk)
                    yield chunk
                if journal is not None and journal.is_due:
                    self._save(journal, number, reader, accumulator)
        if saved is not None:
            raise other_text(told)

    def _find_mode(self) -> Literal["state", "cache", "strided"]:
        if self._carried is None:
            return "strided"
        try:
            grows = retry_on_oom(self._grows, _TRIES)
        except MemoryError:
            raise ValueError(_TOO_SMALL) from None
        self._carried.reset()
        return "cache" if grows else "state"

    def _grows(self, attempt: int) -> bool:
        """Whether state grows from one forward to the next."""
        self._carried.reset()
        for _ in range(2):
            ids = torch.zeros(1, 1, dtype=torch.long)
            self._forward(Step(ids, ids, 0, 1, 0))
        return self._carried.grows

    def _next(self, reader: Reader) -> Step | None:
        most = self.window_batch_size if self._carried is None else 1
        return next_step(reader, self.size, self.overlap, most)

    def _do(
        self, step: Step, document: int, reader: Reader, accumulator: Accumulator
    ) -> list[Chunk]:
        """Score the next windows, in smaller ones where memory is short, and pass them."""
        before = self._carried.snapshot(brief=True) if self._carried is not None else None
        started, short, tries = time.perf_counter(), 0, 0
        reset_peak_memory()
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
            free_cache()
            tries += 1
            if len(step.ids) == 1 and self.overlap and tries < _TRIES_OF_A_WINDOW:
                # A smaller window is another result, and stays.
                continue
            if self._take_less(step, reader):
                tries = 0
            elif tries > _TRIES:
                raise ValueError(
                    f"chunk {len(accumulator)}: out of memory at token {step.first_token} with "
                    f"{step.ids.shape[1]} tokens, and no smaller chunk is to be had; use a smaller "
                    "model or dtype, or a device with more memory"
                )
            _log.warning(
                "chunk %d: out of memory at token %d; going on with %d tokens, %d windows at once",
                len(accumulator), step.first_token, self.size, self.window_batch_size,
            )  # fmt: skip
            step = self._next(reader)
        seconds = time.perf_counter() - started
        reader.pass_by(step.passed)
        first_tokens = [
            step.first_token + i * (self.size - self.overlap) for i in range(len(losses))
        ]
        self._take_more()
        held = 0 if self._carried is None else self._carried.nbytes
        memory, chunks = peak_or_resident_bytes(), []
        for window, (first_token, row) in enumerate(zip(first_tokens, losses, strict=True)):
            if not bool(row.isfinite().all()):
                token = first_token + int((~row.isfinite()).int().argmax())
                raise ValueError(
                    f"chunk {len(accumulator) + window}, document {document}: the logits for token "
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
    def _forward(self, step: Step) -> Tensor:
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

    def _take_less(self, step: Step, reader: Reader) -> bool:
        """Half of the windows at once, else half of the chunk; False where there is no less."""
        least = 2 if self.overlap else self._granule
        tokens = step.ids.shape[1] + (1 if self.overlap else 0)
        if self._is_trial:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._calm, self._is_trial = 0, False
        if len(step.ids) > 1:
            self.window_batch_size = len(step.ids) // 2
            return True
        half = tokens // 2 // least * least
        if half == 0:
            return False
        context = max(1, min(self.overlap, half // 2)) if self.overlap else 0
        if reader.at:
            # The context's first tokens, scored already, are left out of the smaller window.
            reader.pass_by(self.overlap - context)
        self.size, self.overlap = half, context
        return True

    def _take_more(self) -> None:
        """What memory was too short for may fit by now. A window, once smaller, stays so."""
        if self._is_trial:
            self._patience, self._is_trial = _PATIENCE, False
        self._calm += 1
        if self._calm >= self._patience:
            before = (self.size, self.window_batch_size)
            if self._carried is not None:
                self.size = min(2 * self.size, self._largest[0])
            else:
                self.window_batch_size = min(2 * self.window_batch_size, self._largest[1])
            self._calm, self._is_trial = 0, before != (self.size, self.window_batch_size)

    def _prepare(self, reader: Reader) -> None:
        """Before the first chunk of a document: is it exact, and how large may it be."""
        require_positions(self._model, reader, None if self._carried else self.size)
        if not self.is_checked:
            reach = self._reading.reach
            if self._granule > 1:
                reach = _BLOCKS_TO_CHECK * self._granule
            wanted = tokens_to_check(self.size, reach, self._vocabulary or 2**16)
            ids = torch.from_numpy(reader.ahead(wanted + 1))[None].to(self._device)
            # One chunk is all there is: nothing is carried.
            if ids.shape[1] > min(self.size, wanted) + 1:
                if self._handle is not None:
                    require_no_end(self._handle.system)
                try:
                    check(self._losses, self._carried, ids, self.size, self._granule)
                except MemoryError:
                    raise ValueError(_TOO_SMALL) from None
                self.is_checked = True
        if self._reading.adaptive and not self._is_enlarged:
            self._enlarge(reader)
            self._largest, self._is_enlarged = (self.size, self.window_batch_size), True

    def _enlarge(self, reader: Reader) -> None:
        """Double the chunk (strided: the windows at once) while it fits and the text is longer."""
        before, windows, size = peak_or_resident_bytes(), self.window_batch_size, self.size
        while can_double_memory(before):
            if self._carried is None:
                windows *= 2
            else:
                size *= 2
            wanted = windows * size
            if wanted > MOST_ADAPTIVE_TOKENS or len(reader.ahead(wanted)) < wanted:
                break
            tokens = torch.zeros(windows, size, dtype=torch.long)
            try:
                self._forward(Step(tokens, tokens, 0, 1, 0))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            self.window_batch_size, self.size = windows, size
        if self._carried is not None:
            self._carried.reset()
        free_cache()
        _log.info("chunks of %d tokens, %d at once, fit", self.size, self.window_batch_size)

    def _save(
        self, journal: Journal, document: int, reader: Reader, accumulator: Accumulator
    ) -> None:
        frozen, tensors = (None, []) if self._carried is None else self._carried.snapshot()
        told = {
            "document": document,
            "at": reader.at,
            "size": self.size,
            "overlap": self.overlap,
            "window_batch_size": self.window_batch_size,
            "memory": [self._calm, self._patience, self._is_trial, self._largest],
            "state": frozen,
            "ahead": reader.unchecked(_TOKENS_AHEAD).tolist(),
        }
        state = {f"state.{name}": x for name, x in on_cpu(tensors).items()}
        journal.save(
            told, {**state, **{f"accumulator.{k}": x for k, x in accumulator.tensors().items()}}
        )

    @torch.no_grad()
    def _resume(
        self, told: dict, tensors: dict[str, Tensor], reader: Reader, accumulator: Accumulator
    ) -> None:
        self.size, self.overlap = told["size"], told["overlap"]
        self.window_batch_size = told["window_batch_size"]
        self.is_checked = self._is_enlarged = True
        self._calm, self._patience, self._is_trial, self._largest = told["memory"]
        reader.pass_by(told["at"])
        if reader.unchecked(_TOKENS_AHEAD).tolist() != told["ahead"]:
            raise other_text(told)
        accumulator.restore(part(tensors, "accumulator."))
        if self._carried is not None:
            state = numbered(part(tensors, "state."), self._device)
            self._carried.restore((told["state"], state))
        _log.info("going on at document %d, token %d", told["document"], told["at"])
