"""Generate the samples of one task at one length for one tokenizer."""

from typing import TYPE_CHECKING

import polars as pl
from pydantic import TypeAdapter

from needlework.config.tasks.registry import AnyTask
from needlework.pipeline.stage import stage
from needlework.tasks.generate import Sampler, write_samples
from needlework.tasks.prompts.chat import load_chat_frame
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, SERVER_CHAT_FRAME
from needlework.tasks.prompts.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    chat, thinking_tokens = s.params.chat, 0
    chat_frame = SERVER_CHAT_FRAME if s.params.takes_messages else NO_CHAT_FRAME
    if chat is not None:
        chat_frame = load_chat_frame(s.params.tokenizer, s.params.revision, **chat)
        thinking_tokens = chat["thinking_tokens"]
    sampler = Sampler(
        TypeAdapter(AnyTask).validate_python(s.params.task),
        open_tokenizer(s.params.tokenizer, s.params.revision),
        task_name=s.wildcards.task,
        length=int(s.wildcards.length),
        depths=s.params.depths,
        seed=s.params.seed,
        chat_frame=chat_frame,
        thinking_tokens=thinking_tokens,
        haystack=pl.read_parquet(s.input.haystack[0]) if s.input.haystack else None,
        length_unit=s.params.length_unit,
    )
    write_samples(sampler, s.params.samples, s.output.samples)
