"""Token ids of one shard of a stream in one tokenizer, and the index of each document's first."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from needlework.config.streams import Stream
from needlework.evaluation.streaming.token_source import (
    SizedPieces,
    sized,
    sized_documents,
    write_tokens,
)
from needlework.finetune_data.recall_text import recall_text
from needlework.pipeline.stage import stage
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.tasks.prompts.tokenizer import open_tokenizer, start_ids
from needlework.tasks.seeds import stream_seed

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

SENTENCES_PER_PART = 256


def generated_text(seed: int, recall_fraction: float) -> Iterator[str]:
    """Yield an endless text in parts."""
    sentences = recall_text(seed, recall_fraction)
    while True:
        yield "".join(islice(sentences, SENTENCES_PER_PART))


with stage(snakemake) as s:
    stream, shard = Stream.model_validate(s.params.stream), int(s.wildcards.shard)
    tokenizer = open_tokenizer(s.params.tokenizer, s.params.revision)
    starting = start_ids(s.params.tokenizer, s.params.revision, stream.bos)
    documents: Iterable[SizedPieces]
    if stream.path is None:
        seed = stream_seed(s.params.seed, "stream", s.wildcards.stream, shard)
        documents = [
            sized(
                generated_text(seed, stream.recall_fraction),
                prompt_tokenizer(tokenizer),
                start_ids=starting,
            )
        ]
    else:
        every_document = sized_documents(
            stream.path,
            tokenizer,
            column=stream.column,
            split=stream.split,
            dtype=stream.dtype,
            separator=stream.separator,
            start_ids=starting,
            special_tokens=stream.special_tokens,
        )
        documents = islice(every_document, shard, None, stream.shards)
    starts = write_tokens(documents, Path(s.output.tokens), stream.tokens, Path(s.output.sizes))
    np.save(s.output.starts, np.array(starts, dtype=np.int64))
