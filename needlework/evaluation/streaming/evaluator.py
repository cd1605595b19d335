"""Perplexity over texts of any length, read in chunks.

There are three modes. `state` carries the model's state in constant memory, `cache` in memory that
grows; both are exact: each token is scored as in one pass over the text. `strided` reads
independent windows with `overlap` tokens of context, which approximates the text's perplexity and
is exact for a model whose context is a window. Each token except the first of a document is scored
once, whatever the chunk size.
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
from needlework.config.attention.base import Attention
from needlework.config.attention.registry import attention_class
from needlework.evaluation.streaming.accumulator import Accumulator, Chunk
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.chunk_run import ChunkRun
from needlework.evaluation.streaming.document_reader import documents_of, known_token_count
from needlework.evaluation.streaming.model_limits import (
    DEFAULT_CHUNK_SIZE,
    context_span,
    default_chunk_size,
)
from needlework.evaluation.streaming.settings import (
    require_causal_lm,
    require_integer,
    resolve_device,
)
from needlework.evaluation.streaming.windows import ReadingPlan
from needlework.runtime.progress import track

_HASHED_WEIGHTS = 256


@dataclass(frozen=True)
class StreamingEvalConfig:
    """Settings of a StreamingEvaluator and its runs."""

    chunk_size: int | None = DEFAULT_CHUNK_SIZE
    """Tokens per forward; None: the model's own (segment, window, positions)."""
    overlap: int = 0
    """Tokens that a window shares with the previous one; above 0: strided."""
    max_tokens: int | None = None
    """Maximum number of tokens to read; None: all."""
    device: str | None = None
    """None: the GPU if there is one."""
    verbose: bool = True
    log_interval: int = 10
    """Chunks between two updates of the perplexity in the progress."""


def create_streaming_evaluator(
    model: nn.Module, config: StreamingEvalConfig | None = None
) -> "StreamingEvaluator":
    """Make an evaluator with the settings of `config`, or with default settings."""
    config = config or StreamingEvalConfig()
    evaluator = StreamingEvaluator(
        model, config.chunk_size, config.overlap, config.device, config.verbose
    )
    evaluator.max_tokens, evaluator.log_interval = config.max_tokens, config.log_interval
    return evaluator


class StreamingEvaluator:
    """Reads texts through a causal language model, chunk by chunk.

    Args:
        model: a transformers model, or any module that maps ids [batch, n] to logits. State is
            carried in transformers' cache, or by get_state(), set_state(state) and reset_state();
            a module with neither is read strided.
        chunk_size: tokens per forward; None: the model's segment or window, or its positions (at
            most 8192 if state is carried).
        overlap: tokens of context that each window shares with the previous one; above 0: strided.
        device: None: the GPU if there is one.
        verbose: show progress.
        window_batch_size: strided windows per forward.
        adaptive: start with the largest chunk that fits in memory: chunk_size doubled repeatedly.
        separate_documents: read each document without context; else all form one text.
        repeat_first: start each strided window with the text's first token, its BOS, as models such
            as Gemma need; one of the chunk_size tokens.
        attention: a system to apply to the model while it reads.
        tokenizer: for text: a fast tokenizer of transformers, or a tokenizers.Tokenizer.

    Attributes:
        plan: the resolved settings.
        run: the latest run.

    Raises:
        ValueError: overlap is not below chunk_size, a number is too small, the model is not a
            causal language model, or the device does not exist.
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
        repeat_first: bool = False,
        attention: Attention | None = None,
        tokenizer: Any = None,
    ):
        require_causal_lm(model)
        require_integer("chunk_size", chunk_size, 1, none="the model's own")
        require_integer("overlap", overlap, 0)
        require_integer("window_batch_size", window_batch_size, 1)
        size = default_chunk_size(model, attention, overlap) if chunk_size is None else chunk_size
        if overlap >= size:
            raise ValueError(
                f"overlap {overlap}: is not below chunk_size {size}; write at most {size - 1}"
            )
        if repeat_first and overlap >= size - 1:
            raise ValueError(
                f"chunk_size {size}: BOS and an overlap of {overlap} leave no token to score; "
                f"write at least {overlap + 2}"
            )
        self.model, self.attention, self.verbose = model, attention, verbose
        self.device = resolve_device(model, device)
        if self.device != getattr(model, "device", None):
            model.to(self.device)
        self.tokenizer = tokenizer
        span = context_span(model, attention)
        self.plan = ReadingPlan(
            size, overlap, window_batch_size, adaptive, separate_documents, span, repeat_first
        )
        self.max_tokens: int | None = None
        self.log_interval = 10
        self._is_checked = False

    @property
    def is_likelihood(self) -> bool:
        """Whether no later token affects the loss of a token, so that the perplexity of a text is
        a left-to-right likelihood."""
        system, config = self.attention, getattr(self.model, "config", None)
        own = getattr(config, "needlework_attention", None)
        if system is None and own is not None:
            system = attention_class(own)(**getattr(config, own))
        if system is None:
            return True
        return system.is_causal if self.plan.overlap else system.is_causal_with_state

    def evaluate_streaming(
        self,
        data: Any,
        max_tokens: int | None = None,
        log_interval: int | None = None,
        resume: str | Path | None = None,
    ) -> dict[str, Any]:
        """Evaluate the perplexity of a text.

        Args:
            data: token ids (tensor, array or list), documents of them, rows with input_ids (a
                dataset, streaming or not), or the path of a token file (.bin, .npy) or of a table
                with input_ids. With a tokenizer also texts, rows with text, and files of them.
            max_tokens: maximum number of tokens to read; None: all.
            log_interval: chunks between two updates of the perplexity in the progress.
            resume: checkpoint file, saved every minute, from which an interrupted run resumes. It
                is deleted at the end. A checkpoint of another model or of other settings is
                ignored.

        Returns:
            loss (mean over scored tokens, nats), perplexity, total_tokens (scored), num_chunks,
            total_time (seconds), tokens_per_second, avg_chunk_time; mode, chunk_size (at the end),
            overlap, out_of_memory (failed attempts). Loss and perplexity are NaN if no token is
            scored.

        Raises:
            ValueError: losses in chunks differ from those of one pass, a token is outside the
                vocabulary, logits are not finite, memory does not suffice for the smallest chunk,
                or the data is invalid.
        """
        return self._evaluate(data, max_tokens, log_interval, resume)[0]

    def evaluate_streaming_with_metrics(
        self,
        data: Any,
        max_tokens: int | None = None,
        compute_per_token_metrics: bool = False,
    ) -> dict[str, Any]:
        """Evaluate the perplexity of a text, with metrics of each chunk.

        Args:
            data, max_tokens: as in `evaluate_streaming`.
            compute_per_token_metrics: also return losses by token.

        Returns:
            as `evaluate_streaming`, and chunk_losses, chunk_perplexities, chunk_times (lists, one
            number per chunk), avg_chunk_loss, std_chunk_loss (over chunks, unweighted),
            per_token_losses (float32 [total_tokens], nats; None unless requested).

        Raises:
            ValueError: as `evaluate_streaming`.
        """
        token_losses: list[Tensor] | None = [] if compute_per_token_metrics else None
        results, accumulator = self._evaluate(data, max_tokens, None, None, token_losses)
        losses = accumulator["loss"].tolist()
        if token_losses is not None:
            results["per_token_losses"] = (
                torch.cat(token_losses) if token_losses else torch.empty(0)
            )
        return {
            "per_token_losses": None,
            **results,
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
        token_losses: list[Tensor] | None = None,
    ) -> tuple[dict[str, Any], Accumulator]:
        max_tokens = self.max_tokens if max_tokens is None else max_tokens
        accumulator, checkpoint = Accumulator(), None
        if resume is not None:
            key = (fingerprint(self.model), self.attention, self.plan, max_tokens)
            checkpoint = StreamCheckpoint(resume, repr(key))
        started = time.perf_counter()
        for chunk in self.chunks(data, max_tokens, accumulator, checkpoint, log_interval):
            if token_losses is not None:
                token_losses.append(chunk.losses)
        if checkpoint is not None:
            checkpoint.path.unlink(missing_ok=True)
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
            "chunk_size": self.run.chunk_size,
            "overlap": self.run.overlap,
            "out_of_memory": int(accumulator["out_of_memory"].sum()),
        }, accumulator

    def chunks(
        self,
        data: Any,
        max_tokens: int | None = None,
        accumulator: Accumulator | None = None,
        checkpoint: StreamCheckpoint | None = None,
        log_interval: int | None = None,
    ) -> Iterator[Chunk]:
        """Yield the chunks of a run, each after it is added to `accumulator`.

        If the checkpoint holds a state, the run resumes from it, and `accumulator` includes the
        chunks before it.

        Raises:
            ValueError: as `evaluate_streaming`.
        """
        require_integer("max_tokens", max_tokens, 0, none="all")
        require_integer("log_interval", log_interval, 1, none="the evaluator's")
        accumulator = Accumulator() if accumulator is None else accumulator
        join = not self.plan.separate_documents
        documents = documents_of(data, join, max_tokens, self.tokenizer)
        with self._reading() as handle:
            run = self.run = ChunkRun(self.model, handle, self.device, self.plan)
            run.is_checked |= self._is_checked
            progress = (
                track(
                    description=f"streaming, {run.mode}",
                    total=known_token_count(data, max_tokens),
                    unit="token",
                )
                if self.verbose
                else nullcontext()
            )
            with progress as bar:
                for chunk in run.chunks(documents, accumulator, checkpoint):
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
        """Apply the system and switch to eval mode; restore the model afterwards."""
        was_training = self.model.training
        self.model.eval()
        applied = nullcontext() if self.attention is None else apply(self.model, self.attention)
        try:
            with applied as handle:
                yield handle
        finally:
            self.model.train(was_training)


def fingerprint(model: nn.Module) -> str:
    """Hash a model's class and the first weights of each of its tensors."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, x in model.state_dict().items():
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        if x.device.type != "meta":
            weights = x.detach().flatten()[:_HASHED_WEIGHTS].cpu().contiguous()
            digest.update(weights.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _exp(loss: float) -> float:
    return math.inf if loss > 700 else math.exp(loss)
