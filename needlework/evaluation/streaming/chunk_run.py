"""One run through a text, chunk by chunk: state, memory, and checkpoints of both."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from needlework.attention.apply import Handle
from needlework.evaluation.streaming.accumulator import Accumulator, Chunk
from needlework.evaluation.streaming.checkpoint import (
    StreamCheckpoint,
    other_text_error,
    tensors_under,
)
from needlework.evaluation.streaming.document_reader import DocumentReader
from needlework.evaluation.streaming.equivalence import require_equivalence, tokens_to_check
from needlework.evaluation.streaming.kv_state import KVState, kv_state_of
from needlework.evaluation.streaming.model_limits import (
    require_independence_of_length,
    require_positions,
    vocabulary_size,
)
from needlework.evaluation.streaming.snapshot import Structure, from_named_cpu, to_named_cpu
from needlework.evaluation.streaming.token_losses import TokenLosses
from needlework.evaluation.streaming.token_source import Pieces
from needlework.evaluation.streaming.windows import ReadingPlan, WindowBatch, next_windows
from needlework.runtime.memory import (
    can_double_memory,
    free_cache,
    is_out_of_memory,
    peak_or_resident_bytes,
    reset_peak_memory,
    retry_on_oom,
)

_log = logging.getLogger(__name__)
MAX_ADAPTIVE_TOKENS = 2**17
_ATTEMPTS = 12
_ATTEMPTS_PER_WINDOW = 3
_PATIENCE, _MAX_PATIENCE = 4, 256
_LOOKAHEAD_TOKENS = 64
_BLOCKS_TO_CHECK = 16
_TOO_SMALL = (
    "out of memory with few tokens, before the first chunk; use a smaller model or dtype, or a "
    "device with more memory"
)


class ChunkRun:
    """A run through a text.

    Args:
        model: in eval mode.
        handle: of the system that is applied to it.
        device: of the model's input.
        plan: the settings.

    Attributes:
        mode: state, cache or strided; see evaluator.
        chunk_size, overlap, window_batch_size: current values, which decrease if memory runs out.
        is_checked: whether losses in chunks are known to equal those of one pass.
    """

    def __init__(
        self, model: nn.Module, handle: Handle | None, device: torch.device, plan: ReadingPlan
    ):
        self._model, self._handle, self._device = model, handle, device
        self._plan, self._losses = plan, TokenLosses(model)
        self.chunk_size, self.overlap = plan.chunk_size, plan.overlap
        self.window_batch_size = plan.window_batch_size
        # Consecutive chunks that fitted, and how many it takes before a larger one is tried.
        self._successes, self._patience, self._is_trial = 0, _PATIENCE, False
        self._max_sizes, self._is_enlarged = (self.chunk_size, self.window_batch_size), False
        self._kv_state = None if self.overlap else kv_state_of(model, handle)
        self.mode = self._find_mode()
        self.is_checked = self.mode == "strided"
        self._chunk_multiple = handle.system.chunk_multiple if handle and self._kv_state else 1
        self._vocabulary = vocabulary_size(model)

    def chunks(
        self,
        documents: Iterable[Pieces],
        accumulator: Accumulator,
        checkpoint: StreamCheckpoint | None,
    ) -> Iterator[Chunk]:
        """As StreamingEvaluator.chunks."""
        saved = checkpoint.load() if checkpoint is not None else None
        progress, tensors = saved or ({"document": 0}, {})
        for number, pieces in enumerate(documents):
            reader = DocumentReader(pieces, self._vocabulary)
            if number < progress["document"]:
                for _ in pieces:
                    pass
                continue
            if self._kv_state is not None:
                self._kv_state.reset()
            if saved is not None:
                self._resume(progress, tensors, reader, accumulator)
                saved = None
            elif reader.peek(2).size == 2:
                self._prepare(reader)
            while (batch := self._next_windows(reader)) is not None:
                for chunk in self._score(batch, number, reader, accumulator):
                    accumulator.add(chunk)
                    yield chunk
                if checkpoint is not None and checkpoint.is_due:
                    self._save(checkpoint, number, reader, accumulator)
        if saved is not None:
            raise other_text_error(progress)

    def _find_mode(self) -> Literal["state", "cache", "strided"]:
        kv_state = self._kv_state
        if kv_state is None:
            return "strided"
        try:
            grows = retry_on_oom(lambda _: self._observe_growth(kv_state), _ATTEMPTS)
        except MemoryError:
            raise ValueError(_TOO_SMALL) from None
        kv_state.reset()
        return "cache" if grows else "state"

    def _observe_growth(self, kv_state: KVState) -> bool:
        """Whether the state grows from one forward to the next."""
        kv_state.reset()
        for _ in range(2):
            ids = torch.zeros(1, 1, dtype=torch.long)
            self._forward(WindowBatch(ids, ids, 0, 1, 0))
        return kv_state.grows

    def _next_windows(self, reader: DocumentReader) -> WindowBatch | None:
        max_windows = self.window_batch_size if self._kv_state is None else 1
        repeat_first = self._plan.repeat_first and self._kv_state is None
        return next_windows(reader, self.chunk_size, self.overlap, max_windows, repeat_first)

    def _score(
        self, batch: WindowBatch, document: int, reader: DocumentReader, accumulator: Accumulator
    ) -> list[Chunk]:
        """Score the next windows and advance the reader; use smaller ones if memory runs out."""
        kv_state = self._kv_state
        before = kv_state.snapshot(temporary=True) if kv_state is not None else None
        started, failures, attempts = time.perf_counter(), 0, 0
        reset_peak_memory()
        while True:
            try:
                losses = self._forward(batch)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside `except`, where the failed forward's tensors are no longer referenced.
            failures += 1
            if kv_state is not None and before is not None:
                kv_state.restore(before)
            free_cache()
            attempts += 1
            if len(batch.ids) == 1 and self.overlap and attempts < _ATTEMPTS_PER_WINDOW:
                # A smaller window changes the result, and stays: retry first.
                continue
            if self._reduce(batch, reader):
                attempts = 0
            elif attempts > _ATTEMPTS:
                raise ValueError(
                    f"chunk {len(accumulator)}: out of memory at token {batch.first_token} with "
                    f"{batch.ids.shape[1]} tokens, and the chunk cannot be reduced further; use a "
                    "smaller model or dtype, or a device with more memory"
                )
            _log.warning(
                "chunk %d: out of memory at token %d; continuing with %d tokens, %d windows per "
                "forward",
                len(accumulator), batch.first_token, self.chunk_size, self.window_batch_size,
            )  # fmt: skip
            smaller = self._next_windows(reader)
            assert smaller is not None
            batch = smaller
        seconds = time.perf_counter() - started
        reader.advance(batch.advance)
        first_tokens = [batch.first_token + i * batch.stride for i in range(len(losses))]
        self._try_larger()
        state_bytes = 0 if kv_state is None else kv_state.nbytes
        memory, chunks = peak_or_resident_bytes(), []
        for window, (first_token, row) in enumerate(zip(first_tokens, losses, strict=True)):
            if not bool(row.isfinite().all()):
                token = first_token + int((~row.isfinite()).int().argmax())
                raise ValueError(
                    f"chunk {len(accumulator) + window}, document {document}: the logits for token "
                    f"{token} are not finite; the model overflowed: try another dtype"
                )
            chunks.append(
                Chunk(
                    document=document,
                    first_token=first_token,
                    losses=row,
                    tokens_read=batch.ids.shape[1],
                    out_of_memory=failures if window == 0 else 0,
                    state_bytes=state_bytes,
                    seconds=seconds / len(losses),
                    memory_bytes=memory,
                )
            )
        return chunks

    @torch.no_grad()
    def _forward(self, batch: WindowBatch) -> Tensor:
        """Compute losses [windows, m] on the CPU, and update the state."""
        ids, targets = batch.ids.to(self._device), batch.targets.to(self._device)
        tokens = ids.shape[1]
        arguments: dict[str, Any] = {}
        if self._kv_state is not None:
            arguments = self._kv_state.forward_arguments(tokens)
        elif isinstance(self._model, PreTrainedModel):
            arguments = {"use_cache": False}
        losses, output = self._losses(ids, targets, batch.first_logit, **arguments)
        if self._kv_state is not None:
            self._kv_state.update(output, tokens)
        if self._handle is not None:
            self._handle.reset()
        return losses.cpu()

    def _reduce(self, batch: WindowBatch, reader: DocumentReader) -> bool:
        """Halve the number of windows, or else the chunk; return False if neither is possible."""
        multiple = 2 if self.overlap else self._chunk_multiple
        if self._plan.repeat_first and self._kv_state is None:
            multiple *= 2
        tokens = batch.ids.shape[1] + (1 if self.overlap else 0)
        if self._is_trial:
            self._patience = min(2 * self._patience, _MAX_PATIENCE)
        self._successes, self._is_trial = 0, False
        if len(batch.ids) > 1:
            self.window_batch_size = len(batch.ids) // 2
            return True
        half = tokens // 2 // multiple * multiple
        if half == 0:
            return False
        context = max(1, min(self.overlap, half // 2)) if self.overlap else 0
        if reader.position:
            # The smaller window omits the first tokens of the context, which are scored already.
            reader.advance(self.overlap - context)
        self.chunk_size, self.overlap = half, context
        return True

    def _try_larger(self) -> None:
        """Try a larger chunk after enough successes, as memory may be free again.

        Strided windows stay small, as their size changes the result; their number grows.
        """
        if self._is_trial:
            self._patience, self._is_trial = _PATIENCE, False
        self._successes += 1
        if self._successes >= self._patience:
            before = (self.chunk_size, self.window_batch_size)
            max_chunk_size, max_windows = self._max_sizes
            if self._kv_state is not None:
                self.chunk_size = min(2 * self.chunk_size, max_chunk_size)
            else:
                self.window_batch_size = min(2 * self.window_batch_size, max_windows)
            self._successes = 0
            self._is_trial = before != (self.chunk_size, self.window_batch_size)

    def _prepare(self, reader: DocumentReader) -> None:
        """Before the first chunk of a document: check equivalence, and find the largest chunk."""
        kv_state = self._kv_state
        require_positions(self._model, reader, self.chunk_size if kv_state is None else None)
        if kv_state is not None and not self.is_checked:
            self._check_equivalence(reader, kv_state)
        if self._plan.adaptive and not self._is_enlarged:
            self._enlarge(reader)
            self._max_sizes = (self.chunk_size, self.window_batch_size)
            self._is_enlarged = True

    def _check_equivalence(self, reader: DocumentReader, kv_state: KVState) -> None:
        span = self._plan.context_span
        if self._chunk_multiple > 1:
            span = _BLOCKS_TO_CHECK * self._chunk_multiple
        tokens = tokens_to_check(self.chunk_size, span, self._vocabulary or 2**16)
        ids = torch.from_numpy(reader.peek(tokens + 1))[None].to(self._device)
        # A text of a single chunk carries no state.
        if ids.shape[1] <= min(self.chunk_size, tokens) + 1:
            return
        if self._handle is not None:
            require_independence_of_length(self._handle.system)
        try:
            require_equivalence(self._losses, kv_state, ids, self.chunk_size, self._chunk_multiple)
        except MemoryError:
            raise ValueError(_TOO_SMALL) from None
        self.is_checked = True

    def _enlarge(self, reader: DocumentReader) -> None:
        """Double the chunk (strided: the number of windows) while memory and text suffice."""
        baseline = peak_or_resident_bytes()
        windows, size = self.window_batch_size, self.chunk_size
        while can_double_memory(baseline):
            if self._kv_state is None:
                windows *= 2
            else:
                size *= 2
            tokens = windows * size
            if tokens > MAX_ADAPTIVE_TOKENS or len(reader.peek(tokens)) < tokens:
                break
            ids = torch.zeros(windows, size, dtype=torch.long)
            try:
                self._forward(WindowBatch(ids, ids, 0, 1, 0))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            self.window_batch_size, self.chunk_size = windows, size
        if self._kv_state is not None:
            self._kv_state.reset()
        free_cache()
        _log.info(
            "chunks of %d tokens fit, %d per forward", self.chunk_size, self.window_batch_size
        )

    def _save(
        self,
        checkpoint: StreamCheckpoint,
        document: int,
        reader: DocumentReader,
        accumulator: Accumulator,
    ) -> None:
        structure: Structure | None = None
        tensors: list[Tensor] = []
        if self._kv_state is not None:
            structure, tensors = self._kv_state.snapshot()
        progress = {
            "document": document,
            "at": reader.position,
            "size": self.chunk_size,
            "overlap": self.overlap,
            "window_batch_size": self.window_batch_size,
            "memory": [self._successes, self._patience, self._is_trial, self._max_sizes],
            "state": structure,
            "ahead": reader.peek_unchecked(_LOOKAHEAD_TOKENS).tolist(),
        }
        state = {f"state.{name}": x for name, x in to_named_cpu(tensors).items()}
        sums = {f"accumulator.{name}": x for name, x in accumulator.tensors().items()}
        checkpoint.save(progress, {**state, **sums})

    @torch.no_grad()
    def _resume(
        self,
        progress: dict[str, Any],
        tensors: dict[str, Tensor],
        reader: DocumentReader,
        accumulator: Accumulator,
    ) -> None:
        self.chunk_size, self.overlap = progress["size"], progress["overlap"]
        self.window_batch_size = progress["window_batch_size"]
        self.is_checked = self._is_enlarged = True
        self._successes, self._patience, self._is_trial, self._max_sizes = progress["memory"]
        reader.advance(progress["at"])
        if reader.peek_unchecked(_LOOKAHEAD_TOKENS).tolist() != progress["ahead"]:
            raise other_text_error(progress)
        accumulator.restore(tensors_under(tensors, "accumulator."))
        if self._kv_state is not None:
            state = from_named_cpu(tensors_under(tensors, "state."), self._device)
            self._kv_state.restore((progress["state"], state))
        _log.info("resuming at document %d, token %d", progress["document"], progress["at"])
