"""Samples of any task: a prompt a row, filled to its length."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Literal

import polars as pl
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from needlework.config.tasks import Task
from needlework.reasoning.tags import CLOSING_TEXT
from needlework.runtime.progress import track
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.prompts.budget import (
    Draft,
    Exhausted,
    TooLong,
    fill,
    least_tokens,
    smallest_length,
    text_of,
)
from needlework.tasks.prompts.depth_sampler import Spread
from needlework.tasks.prompts.prompt import PLAIN, Frame, Prompt
from needlework.tasks.prompts.token_counter import CharacterCounter, Counter
from needlework.tasks.prompts.tokenizer import uncut
from needlework.tasks.seeds import stream_seed

SAMPLES = {
    "task": pl.String,
    "length": pl.Int64,
    "sample": pl.Int64,
    "seed": pl.Int64,
    "context": pl.String,
    "question": pl.String,
    "answer_prefix": pl.String,
    "prompt": pl.String,
    "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
    "outputs": pl.List(pl.String),
    "value_type": pl.String,
    "needles": pl.List(
        pl.Struct(
            {
                "key": pl.String,
                "value": pl.String,
                "depth_percent": pl.Float64,
                "token_position": pl.Int64,
            }
        )
    ),
    "tokens": pl.Int64,
    "max_new_tokens": pl.Int64,
}
TRIED = 128
"""Samples that a length named in an error is known to work for."""
_BATCH_CHARACTERS = 50_000_000
"""Text in a row group of a table that is written as it is made."""


class Sampler:
    """Samples of one task at one length, in any order."""

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        *,
        task_name: str,
        length: int,
        depths: list[float] | Literal["uniform"],
        seed: int,
        frame: Frame = PLAIN,
        thinking_tokens: int = 0,
        haystack: pl.DataFrame | None = None,
        length_unit: Literal["tokens", "characters"] = "tokens",
        training: bool = False,
    ):
        """Get ready for any sample.

        Args:
            task: its parameters; `task.module` names the module here that makes its drafts.
            tokenizer: what tokens are counted in.
            task_name: the task's name in the experiment.
            length: of the prompt and its answer together in tokens, or of the prompt alone in
                characters.
            depths: percent of the haystack before a needle asked for; the task's own come first.
            seed: of the experiment.
            frame: chat template around the prompt, or none.
            thinking_tokens: room for thoughts before the answer; there is more for their end.
            haystack: the text that the task's haystack names; columns sentence and tokens.
            length_unit: what `length` counts.
            training: rows to train on, from random streams that no evaluation draws from.
        """
        self.task, self.task_name, self._seed = task, task_name, seed
        self._tokenizer, self._frame = uncut(tokenizer), frame
        self._haystack, self._unit, self._training = haystack, length_unit, training
        self._key = "length" if training else "lengths"
        self._new_tokens = task.max_new_tokens
        if thinking_tokens:
            ending = self._tokenizer.encode(CLOSING_TEXT, add_special_tokens=False)
            self._new_tokens += thinking_tokens + len(ending)
        # Where a file lies is no parameter: what it holds is.
        self._parameters = {
            "type": task.type,
            **task.model_dump(mode="json", exclude_defaults=True, exclude={"path"}),
        }
        own = getattr(task, "depths", None)
        self._depths = depths if own is None else own
        count = Counter if length_unit == "tokens" else CharacterCounter
        self._counter = count(self._tokenizer, frame)
        self.length = length
        self._starts: dict[int, Callable[[int], tuple[int, Draft]]] = {}
        self._check_sums()

    def sample(self, index: int) -> dict:
        """Row `index`, keys as in `SAMPLES`: the same whatever else is asked for.

        It is drawn from a stream of its own, told by the seed, the task's parameters, the length
        and `index`. `tokens` counts the whole prompt with the special tokens that the tokenizer
        adds; with `max_new_tokens` (thoughts and answer) it comes to the length at most.
        `token_position` is where a needle starts.

        Raises:
            ValueError: the length is too small for the task, or beyond its natural end; the
                nearest that works is named.
        """
        sample_seed, draft = self._start(self.length)(index)
        try:
            prompt = fill(draft, self._counter, self._budget(self.length))
        except TooLong:
            smallest = smallest_length(self.length, self._needed)
            raise ValueError(
                f"{self._key}: {self.length} is too small for task {self.task_name};"
                f" set {smallest} or more"
            ) from None
        except Exhausted:
            raise ValueError(
                f"{self._key}: {self.length} is beyond the natural end of task {self.task_name};"
                f" set {self._largest(self.length)} or less"
            ) from None
        return self._row(index, sample_seed, prompt)

    @property
    def counts_add_up(self) -> bool:
        """Whether prompts are filled by arithmetic: then a sample costs next to nothing."""
        return self._counter.additive

    @property
    def _answer_room(self) -> int:
        return self._new_tokens if self._unit == "tokens" else 0

    def _budget(self, length: int) -> int:
        return length - self._answer_room

    def _start(self, length: int) -> Callable[[int], tuple[int, Draft]]:
        """What makes sample i's seed and draft at a length."""
        if length in self._starts:
            return self._starts[length]
        stream = (self._seed, self._parameters, length)
        stream = ("training", *stream) if self._training else stream
        setting = Setting(length, stream, self._haystack, self._training)
        module = import_module(self.task.module)
        spread = Spread(self._depths, *stream)
        with self._named():
            drafts = module.drafts(self.task, self._counter, setting)

        def start(index: int) -> tuple[int, Draft]:
            sample_seed = stream_seed(*stream, index)
            with self._named():
                return sample_seed, drafts(SampleContext(Random(sample_seed), index, spread))

        self._starts = {length: start}
        return start

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the task."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"tasks.{self.task_name}: {error}") from None

    def _needed(self, length: int) -> int:
        """The length that the longest of the least prompts of the first samples needs."""
        start = self._start(length)
        least = max(least_tokens(start(i)[1], self._counter) for i in range(TRIED))
        return least + self._answer_room

    def _largest(self, length: int) -> int:
        """The length that the first samples have enough to fill."""
        while True:
            start, most = self._start(length), self._budget(length)
            for i in range(TRIED):
                try:
                    start(i)[1].build(self._budget(length))
                except Exhausted as end:
                    most = min(most, end.most_tokens)
            if most == self._budget(length):
                return length
            length = most + self._answer_room

    def _check_sums(self) -> None:
        """Trust sums of pieces only if they hold for the first sample's whole prompt."""
        if not self._counter.additive or self._unit == "characters":
            return
        _, draft = self._start(self.length)(0)
        try:
            prompt = draft.build(self._budget(self.length))
        except Exhausted:
            return
        if self._counter.whole(text_of(prompt, self._counter)) != prompt.tokens:
            self._counter.additive = False

    def _row(self, index: int, sample_seed: int, prompt: Prompt) -> dict:
        frame, text = self._frame, text_of(prompt, self._counter)
        asked, prefix = prompt.context + prompt.question, prompt.answer_prefix
        turns = [{"role": "user", "content": asked if frame.prefills else asked + prefix}]
        if frame.system_prompt is not None:
            turns.insert(0, {"role": "system", "content": frame.system_prompt})
        if frame.prefills and prefix.strip():
            turns.append({"role": "assistant", "content": prefix.strip()})
        tokens, positions = prompt.tokens, [needle.token for needle in prompt.needles]
        if self._unit == "characters" or not self._counter.additive:
            encoding = self._tokenizer.encode(text)
            tokens = len(encoding)
            positions = [
                self._counter.token_at(encoding, len(frame.head) + needle.character)
                for needle in prompt.needles
            ]
        return {
            "task": self.task_name,
            "length": self.length,
            "sample": index,
            "seed": sample_seed,
            "context": prompt.context,
            "question": prompt.question,
            "answer_prefix": prefix,
            "prompt": text,
            "messages": turns,
            "outputs": list(prompt.outputs),
            "value_type": self.task.answer_type,
            "needles": [
                {
                    "key": needle.key,
                    "value": needle.value,
                    "depth_percent": needle.depth_percent,
                    "token_position": position,
                }
                for needle, position in zip(prompt.needles, positions, strict=True)
            ],
            "tokens": tokens,
            "max_new_tokens": self._new_tokens,
        }


def samples(sampler: Sampler, count: int) -> pl.DataFrame:
    """The first `count` samples, columns and types as in `SAMPLES`."""
    return pl.DataFrame(list(_rows(sampler, count)), SAMPLES, orient="row")


def write_samples(sampler: Sampler, count: int, path: str | Path) -> None:
    """The first `count` samples as a Parquet table, held in memory a few at a time."""
    schema = pl.DataFrame(schema=SAMPLES).to_arrow().schema
    batch, characters = [], 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in _rows(sampler, count):
            batch.append(row)
            characters += len(row["prompt"])
            if characters > _BATCH_CHARACTERS:
                writer.write_table(pl.DataFrame(batch, SAMPLES, orient="row").to_arrow())
                batch, characters = [], 0
        if batch:
            writer.write_table(pl.DataFrame(batch, SAMPLES, orient="row").to_arrow())


def _rows(sampler: Sampler, count: int) -> Iterator[dict]:
    for index in track(
        range(count),
        description=f"{sampler.task_name} at {sampler.length}",
        total=count,
        unit="sample",
    ):
        yield sampler.sample(index)
