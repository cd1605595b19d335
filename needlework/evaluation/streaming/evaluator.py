"""Perplexity over texts of any length, read in chunks.

In mode `state` a model carries on what it knows in constant memory, and in mode `cache` in memory
that grows: both are exact, each token is scored as if the text were read at once. In mode `strided`
every window is read anew, with `overlap` tokens of context: an approximation, that of a model whose
context is a window. Each token but a document's first is scored once, whatever the chunk.
"""

import hashlib
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from needlework.attention.apply import Handle, apply
from needlework.config.attention import Attention
from needlework.evaluation.streaming.accumulator import Accumulator, Chunk
from needlework.evaluation.streaming.checkpoint import Journal
from needlework.evaluation.streaming.chunk_run import ChunkRun
from needlework.evaluation.streaming.default_chunk import USUAL_CHUNK, own_chunk, reach_of
from needlework.evaluation.streaming.document_reader import documents_of, tokens_in
from needlework.evaluation.streaming.settings import device_of, require_causal, require_whole
from needlework.evaluation.streaming.windows import Reading
from needlework.runtime.progress import track

_WEIGHTS_TO_HASH = 256


@dataclass(frozen=True)
class StreamingEvalConfig:
    """Settings of a StreamingEvaluator and its runs."""

    chunk_size: int | None = USUAL_CHUNK
    """Tokens a forward; None: the model's own (segment, window, positions)."""
    overlap: int = 0
    """Tokens that a window repeats of the one before; above 0: strided."""
    max_tokens: int | None = None
    """Most tokens to read; None: all, 0: none."""
    device: str | None = None
    """None: the GPU if there is one."""
    verbose: bool = True
    log_interval: int = 10
    """Chunks between two lines of progress."""


def create_streaming_evaluator(
    model: nn.Module, config: StreamingEvalConfig | None = None
) -> "StreamingEvaluator":
    """An evaluator with the settings of `config`, or the usual ones."""
    config = config or StreamingEvalConfig()
    made = StreamingEvaluator(
        model, config.chunk_size, config.overlap, config.device, config.verbose
    )
    made.max_tokens, made.log_interval = config.max_tokens, config.log_interval
    return made


class StreamingEvaluator:
    """Reads texts through a causal language model, chunk by chunk.

    Args:
        model: of transformers, or any module that maps ids [batch, n] to logits. State is carried
            in transformers' cache, or by get_state(), set_state(state) and reset_state(); a module
            with neither is read strided.
        chunk_size: tokens a forward; None: the model's own segment or window, or its positions (at
            most 8192 where state is carried).
        overlap: tokens that each window repeats of the one before, for context; above 0: strided.
        device: None: the GPU if there is one.
        verbose: tell progress.
        window_batch_size: strided windows in one forward.
        adaptive: begin with the largest chunk that fits into memory: doublings of chunk_size.
        separate_documents: begin each document with no context; else they are one text.
        attention: a system to put on the model while it reads.
        tokenizer: for data that is text: a fast one of transformers, or of tokenizers.

    Raises:
        ValueError: overlap does not lie below chunk_size, a number is below its least, the model
            is no causal language model, or there is no such device.
    """

    def __init__(
        self,
        model: nn.Module,
        chunk_size: int | None = None,
        overlap: int = 0,
        device: str | None = None,
        verbose: bool = True,
        *,
        window_batch_size: int = 1,
        adaptive: bool = False,
        separate_documents: bool = False,
        attention: Attention | None = None,
        tokenizer: Any = None,
    ):
        require_causal(model)
        require_whole("chunk_size", chunk_size, 1, none="the model's own")
        require_whole("overlap", overlap, 0)
        require_whole("window_batch_size", window_batch_size, 1)
        size = own_chunk(model, attention, overlap) if chunk_size is None else chunk_size
        if overlap >= size:
            raise ValueError(
                f"overlap {overlap}: is not below chunk_size {size}; write at most {size - 1}"
            )
        self.model, self.attention, self.verbose = model, attention, verbose
        self.device = device_of(model, device)
        if self.device != getattr(model, "device", None):
            model.to(self.device)
        self.tokenizer = tokenizer
        reach = reach_of(model, attention)
        self.reading = Reading(
            size, overlap, window_batch_size, adaptive, separate_documents, reach
        )
        self.max_tokens: int | None = None
        self.log_interval = 10
        self._is_checked = False

    def evaluate_streaming(
        self,
        data: Any,
        max_tokens: int | None = None,
        log_interval: int | None = None,
        resume: str | Path | None = None,
    ) -> dict[str, Any]:
        """Perplexity of a text.

        Args:
            data: token ids (tensor, array or list), documents of them, rows with input_ids (a
                dataset, streaming or not), or a path: a file of tokens (.bin, .npy), or a table
                with input_ids. With a tokenizer also texts, rows with text, and files of them.
            max_tokens: most tokens to read; None: all, 0: none.
            log_interval: chunks between two lines of progress.
            resume: a file to save the state in every minute, from which a killed run goes on. It
                is deleted at the end. A state of another model or setting is not used.

        Returns:
            loss (mean over the tokens scored, nats), perplexity, total_tokens (scored), num_chunks,
            total_time (seconds), tokens_per_second, avg_chunk_time; mode, chunk_size (at the end),
            overlap, out_of_memory (how often). Without a token to score loss and perplexity are
            NaN.

        Raises:
            ValueError: the model is not exact in chunks, a token is not in its vocabulary, logits
                are not finite, memory is too small for the least chunk, or the data is none.
        """
        return self._evaluate(data, max_tokens, log_interval, resume)[0]

    def evaluate_streaming_with_metrics(
        self,
        data: Any,
        max_tokens: int | None = None,
        compute_per_token_metrics: bool = False,
    ) -> dict[str, Any]:
        """As evaluate_streaming, with what each chunk did.

        Returns:
            Also chunk_losses, chunk_perplexities, chunk_times (lists, a number a chunk),
            avg_chunk_loss, std_chunk_loss (over chunks, unweighted), per_token_losses (float32
            [total_tokens], nats; None unless asked for).
        """
        kept: list[Tensor] | None = [] if compute_per_token_metrics else None
        found, accumulator = self._evaluate(data, max_tokens, None, None, kept)
        losses = accumulator["loss"].tolist()
        if kept is not None:
            found["per_token_losses"] = torch.cat(kept) if kept else torch.empty(0)
        return {
            "per_token_losses": None,
            **found,
            "chunk_losses": losses,
            "chunk_perplexities": [_exp(loss) for loss in losses],
            "chunk_times": accumulator["seconds"].tolist(),
            "avg_chunk_loss": statistics.fmean(losses) if losses else math.nan,
            "std_chunk_loss": statistics.pstdev(losses) if losses else math.nan,
        }

    def _evaluate(
        self,
        data: Any,
        max_tokens: int | None,
        log_interval: int | None,
        resume: str | Path | None,
        kept: list[Tensor] | None = None,
    ) -> tuple[dict[str, Any], Accumulator]:
        max_tokens = self.max_tokens if max_tokens is None else max_tokens
        accumulator, journal = Accumulator(), None
        if resume is not None:
            key = (fingerprint(self.model), self.attention, self.reading, max_tokens)
            journal = Journal(resume, repr(key))
        started = time.perf_counter()
        for chunk in self.chunks(data, max_tokens, accumulator, journal, log_interval):
            if kept is not None:
                kept.append(chunk.losses)
        if journal is not None:
            journal.path.unlink(missing_ok=True)
        seconds = time.perf_counter() - started
        tokens = accumulator.tokens
        return {
            "loss": accumulator.loss,
            "perplexity": _exp(accumulator.loss),
            "total_tokens": tokens,
            "num_chunks": len(accumulator),
            "total_time": seconds,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
            "avg_chunk_time": float(accumulator["seconds"].mean()) if len(accumulator) else 0.0,
            "mode": self.run.mode,
            "chunk_size": self.run.size,
            "overlap": self.run.overlap,
            "out_of_memory": int(accumulator["out_of_memory"].sum()),
        }, accumulator

    def chunks(
        self,
        data: Any,
        max_tokens: int | None = None,
        accumulator: Accumulator | None = None,
        journal: Journal | None = None,
        log_interval: int | None = None,
    ) -> Iterator[Chunk]:
        """The chunks of a run, one after the other, each counted in `accumulator` before it is given.

        With a journal that holds a state the run goes on from there, and `accumulator` holds what was
        before.

        Raises:
            ValueError: as evaluate_streaming.
        """
        require_whole("max_tokens", max_tokens, 0, none="all")
        require_whole("log_interval", log_interval, 1, none="the evaluator's")
        accumulator = Accumulator() if accumulator is None else accumulator
        together = not self.reading.separate_documents
        documents = documents_of(data, together, max_tokens, self.tokenizer)
        with self._reading() as handle:
            run = self.run = ChunkRun(self.model, handle, self.device, self.reading)
            run.is_checked |= self._is_checked
            total = tokens_in(data, max_tokens)
            named = {"description": f"streaming, {run.mode}", "total": total, "unit": "token"}
            with track(**named) if self.verbose else nullcontext() as bar:
                for chunk in run.chunks(documents, accumulator, journal):
                    if bar is not None:
                        bar.update(accumulator.tokens - bar.n)
                        if len(accumulator) % (log_interval or self.log_interval) == 0:
                            bar.set_postfix(
                                perplexity=f"{_exp(accumulator.loss):.4g}", refresh=False
                            )
                    yield chunk
            self._is_checked = run.is_checked

    @contextmanager
    def _reading(self) -> Iterator[Handle | None]:
        """The model as it is read with: its system on, in eval mode, without gradients."""
        trained = self.model.training
        self.model.eval()
        put_on = nullcontext() if self.attention is None else apply(self.model, self.attention)
        try:
            with put_on as handle:
                yield handle
        finally:
            self.model.train(trained)


def fingerprint(model: nn.Module) -> str:
    """Of a model's code and the first weights of each of its tensors."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, x in model.state_dict().items():
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        if x.device.type != "meta":
            few = x.detach().flatten()[:_WEIGHTS_TO_HASH].cpu().contiguous()
            digest.update(few.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _exp(loss: float) -> float:
    return math.inf if loss > 700 else math.exp(loss)
