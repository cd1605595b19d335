"""Generate the samples of any task, each filled to its length.

A task is one module of this package, named by `module` of its parameters in config/tasks/. It
defines

    prepare(task, counter, task_context) -> function of a SampleContext that returns a PromptBuilder

`prepare` does once what all samples of a task at one length share. The returned function draws one
sample from the sample's own random generator. The PromptBuilder then builds the sample's prompt at
any number of tokens; see prompts/budget.py.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Literal

import polars as pl
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from needlework.config.tasks.base import Task
from needlework.reasoning.formats import THINK
from needlework.runtime.progress import track
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.sources.control_tokens import describe
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.prompts.budget import (
    BudgetTooSmall,
    ContentExhausted,
    FindsAnswers,
    PromptBuilder,
    fit_prompt,
    shortest_tokens,
    smallest_length,
)
from needlework.tasks.prompts.depth_sampler import DepthSampler
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, ChatFrame, Prompt
from needlework.tasks.prompts.token_counter import CharacterCounter, TokenCounter
from needlework.tasks.sample_table import SAMPLE_SCHEMA
from needlework.tasks.seeds import stream_seed

_log = logging.getLogger(__name__)

PROBED_SAMPLES = 128
"""Samples that a length suggested by an error message is checked with."""
_NOT_SEEDED = {"path", "answers_in_haystack", "special_tokens"}
"""Parameters that random streams do not depend on: paths, checks, and how text is encoded."""
_BATCH_CHARACTERS = 50_000_000
"""Characters of prompts in one row group of a table that is written incrementally."""


class Sampler:
    """Generates the samples of one task at one length, in any order."""

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        *,
        task_name: str,
        length: int,
        depths: list[float] | Literal["uniform"],
        seed: int,
        chat_frame: ChatFrame = NO_CHAT_FRAME,
        thinking_tokens: int = 0,
        haystack: pl.DataFrame | None = None,
        length_unit: Literal["tokens", "characters"] = "tokens",
        training: bool = False,
    ):
        """Prepare everything that the samples share.

        Args:
            task: parameters of the task.
            tokenizer: the tokenizer that lengths are measured in.
            task_name: the task's name in the experiment.
            length: tokens of prompt and answer together, or characters of the prompt.
            depths: depths of the queried needles in percent; the task's own depths win.
            seed: the experiment's seed.
            chat_frame: the chat template around the prompt.
            thinking_tokens: budget for thinking before the answer; its end tag is added to it.
            haystack: sentences of the user's haystack text, columns sentence and tokens.
            length_unit: the unit of `length`.
            training: generate training rows, from random streams that no evaluation uses.
        """
        self.task, self.task_name, self._seed = task, task_name, seed
        self._chat_frame, self._haystack = chat_frame, haystack
        self._unit, self._training = length_unit, training
        self._length_key = "length" if training else "lengths"
        self._new_tokens = task.max_new_tokens
        if thinking_tokens:
            closing_text = (chat_frame.thought or THINK).closing_text
            encode = prompt_tokenizer(tokenizer, "allow").encode
            closing_ids = encode(closing_text, add_special_tokens=False)
            self._new_tokens += thinking_tokens + len(closing_ids)
        self._parameters = {
            "type": task.type_name,
            **task.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_SEEDED),
        }
        task_depths = getattr(task, "depths", None)
        self._depths = depths if task_depths is None else task_depths
        counter_class = TokenCounter if length_unit == "tokens" else CharacterCounter
        self._counter = counter_class(tokenizer, chat_frame, task.special_tokens)
        if haystack is not None and task.special_tokens == "allow":
            # Its sentences were counted as text.
            self._counter.additive = False
        templates = getattr(task, "templates", None)
        if templates is not None and not templates.is_ascii and length_unit == "tokens":
            self._counter.additive = False
        self.length = length
        self._warned_of_spelled = False
        self.samples_with_answers = 0
        """Samples so far in whose context an answer occurs outside its needle."""
        self._factories: dict[int, Callable[[int], tuple[int, PromptBuilder]]] = {}
        self._verify_counts()

    def sample(self, index: int) -> dict[str, Any]:
        """Generate row `index`, with keys as in SAMPLE_SCHEMA.

        The row depends only on the seed, the task's parameters, the length, the tokenizer and
        `index`. `tokens` counts the whole prompt, special tokens included; `tokens` plus
        `max_new_tokens` (thinking and answer) is at most the length. `token_position` is the index
        of a needle's first token.

        Raises:
            ValueError: the length is too small for the task, or larger than its content can fill;
                the message names the nearest length that works.
        """
        sample_seed, builder = self._factory(self.length)(index)
        try:
            prompt = fit_prompt(builder, self._counter, self._budget(self.length))
        except BudgetTooSmall:
            smallest = smallest_length(self.length, self._required_length)
            raise ValueError(
                f"{self._length_key}: {self.length} is too small for task {self.task_name};"
                f" write {smallest} or more"
            ) from None
        except ContentExhausted:
            raise ValueError(
                f"{self._length_key}: {self.length} is more than the content of task"
                f" {self.task_name} fills; write {self._largest_length()} or less"
            ) from None
        self._check_answers(builder, prompt)
        return self._row(index, sample_seed, prompt)

    def _check_answers(self, builder: PromptBuilder, prompt: Prompt) -> None:
        """Warn of, or refuse, answers that can be found without reading the needle."""
        if not isinstance(builder, FindsAnswers):
            return
        found = builder.answers_elsewhere(prompt)
        if not found:
            return
        answer, count = max(found.items(), key=lambda item: item[1])
        message = (
            f"tasks.{self.task_name}: the answer {answer!r:.40} occurs {count} times in the "
            f"context at {self.length} outside its needle; write {self.task.answers_remedy}"
        )
        if getattr(self.task, "answers_in_haystack", None) == "refuse":
            raise ValueError(f"{message}, or answers_in_haystack: warn")
        if not self.samples_with_answers:
            _log.warning("%s", message)
        self.samples_with_answers += 1

    @property
    def is_additive(self) -> bool:
        """Whether prompts are fitted by arithmetic, which makes samples cheap."""
        return self._counter.additive

    @property
    def _answer_room(self) -> int:
        return self._new_tokens if self._unit == "tokens" else 0

    def _budget(self, length: int) -> int:
        return length - self._answer_room

    def _factory(self, length: int) -> Callable[[int], tuple[int, PromptBuilder]]:
        """A function that returns the seed and the prompt builder of sample i at `length`."""
        if length in self._factories:
            return self._factories[length]
        seed_parts: tuple[Any, ...] = (self._seed, self._parameters, length)
        if self._training:
            seed_parts = ("training", *seed_parts)
        task_context = TaskContext(length, seed_parts, self._haystack, self._training)
        module = import_module(self.task.module)
        depth_sampler = DepthSampler(self._depths, *seed_parts)
        with self._errors_name_task():
            prompt_builder = module.prepare(self.task, self._counter, task_context)

        def factory(index: int) -> tuple[int, PromptBuilder]:
            sample_seed = stream_seed(*seed_parts, index)
            sample = SampleContext(Random(sample_seed), index, depth_sampler)
            with self._errors_name_task():
                return sample_seed, prompt_builder(sample)

        # Haystacks are large: keep only that of the last length.
        self._factories = {length: factory}
        return factory

    @contextmanager
    def _errors_name_task(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"tasks.{self.task_name}: {error}") from None

    def _required_length(self, length: int) -> int:
        """The length that the shortest prompts of the first samples need, at `length`."""
        factory = self._factory(length)
        needed = max(shortest_tokens(factory(i)[1], self._counter) for i in range(PROBED_SAMPLES))
        return needed + self._answer_room

    def _largest_length(self) -> int:
        """A length that the content of the first samples fills."""
        length = self.length
        while True:
            factory, budget = self._factory(length), self._budget(length)
            longest = budget
            for i in range(PROBED_SAMPLES):
                try:
                    factory(i)[1].build(budget)
                except ContentExhausted as error:
                    longest = min(longest, error.longest_tokens)
            if longest == budget:
                return length
            length = longest + self._answer_room

    def _verify_counts(self) -> None:
        """Rely on summed counts only if they are right for the first sample's whole prompt."""
        if not self._counter.additive or self._unit == "characters":
            return
        _, builder = self._factory(self.length)(0)
        try:
            prompt = builder.build(self._budget(self.length))
        except ContentExhausted:
            return
        if self._counter.count_prompt(prompt) != prompt.tokens:
            self._counter.additive = False

    def _row(self, index: int, sample_seed: int, prompt: Prompt) -> dict[str, Any]:
        text, spelled = self._chat_frame.text(prompt), self._counter.spelled(prompt)
        if spelled and not self._warned_of_spelled:
            _log.warning(
                "tasks.%s: sample %d at %d %s",
                self.task_name,
                index,
                self.length,
                describe(spelled, self.task.special_tokens),
            )
            self._warned_of_spelled = True
        tokens, positions = prompt.tokens, [needle.token for needle in prompt.needles]
        if self._unit == "characters" or not self._counter.additive:
            encoding = self._counter.encode_prompt(prompt)
            tokens = len(encoding)
            offset = len(self._chat_frame.head)
            positions = [
                self._counter.token_at(encoding, offset + needle.character)
                for needle in prompt.needles
            ]
        return {
            "task": self.task_name,
            "length": self.length,
            "sample": index,
            "seed": sample_seed,
            "context": prompt.context,
            "question": prompt.question,
            "answer_prefix": prompt.answer_prefix,
            "prompt": text,
            "control_spans": self._counter.control_spans(prompt),
            "spelled_tokens": spelled.total(),
            "history": [message._asdict() for message in prompt.history],
            "messages": self._messages(prompt),
            "outputs": list(prompt.outputs),
            "required_prefix": prompt.required_prefix,
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

    def _messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        frame, prefix = self._chat_frame, prompt.answer_prefix
        content = prompt.context + prompt.question
        messages = [message._asdict() for message in frame.conversation(prompt.history)]
        messages.append(
            {"role": "user", "content": content if frame.prefills else content + prefix}
        )
        if frame.prefills and prefix.strip():
            messages.append({"role": "assistant", "content": prefix.strip()})
        return messages


def make_samples(sampler: Sampler, count: int) -> pl.DataFrame:
    """Generate the first `count` samples, columns as in SAMPLE_SCHEMA."""
    return pl.DataFrame(list(_rows(sampler, count)), SAMPLE_SCHEMA, orient="row")


def write_samples(sampler: Sampler, count: int, path: str | Path) -> None:
    """Write the first `count` samples as a Parquet table, with few of them in memory."""
    schema = pl.DataFrame(schema=SAMPLE_SCHEMA).to_arrow().schema
    batch: list[dict[str, Any]] = []
    characters = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in _rows(sampler, count):
            batch.append(row)
            characters += len(row["prompt"])
            if characters > _BATCH_CHARACTERS:
                writer.write_table(pl.DataFrame(batch, SAMPLE_SCHEMA, orient="row").to_arrow())
                batch, characters = [], 0
        if batch:
            writer.write_table(pl.DataFrame(batch, SAMPLE_SCHEMA, orient="row").to_arrow())


def _rows(sampler: Sampler, count: int) -> Iterator[dict[str, Any]]:
    for index in track(
        range(count),
        description=f"{sampler.task_name} at {sampler.length}",
        total=count,
        unit="sample",
    ):
        yield sampler.sample(index)
    if sampler.samples_with_answers > 1:
        _log.warning(
            "tasks.%s: %d of %d samples at %d have an answer in the context outside its needle",
            *(sampler.task_name, sampler.samples_with_answers, count, sampler.length),
        )
