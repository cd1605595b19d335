"""Streams: long texts that systems read from end to end, for perplexity by position."""

from typing import Literal, Self

from pydantic import Field, model_validator

from needlework.config.attention import AnyAttention
from needlework.config.base import Name, Strict


class StreamedSystem(Strict):
    """How one system reads a stream; what is left out is as the stream says."""

    model: Name | None = Field(
        None, description="for a system of the stream's own: a name under models"
    )
    attention: AnyAttention | None = Field(
        None, description="of a system of the stream's own; null: the model's own attention"
    )
    chunk_size: int | None = Field(
        None, ge=1, description="tokens a forward; null: the stream's, or the model's own"
    )
    overlap: int | None = Field(
        None, ge=0, description="above 0: strided windows; null: the stream's"
    )
    window_batch_size: int = Field(1, ge=1, description="strided windows in one forward")


class Stream(Strict):
    """A long text, generated or from disk, and how it is read."""

    path: str | None = Field(
        None,
        min_length=1,
        description="token files (.bin, .npy), text (.txt, .md), tables (.parquet, .jsonl, .json, "
        ".csv), a folder of one kind or that `datasets` saved, or a hub's owner/name; null: "
        "generated text",
    )
    column: str | None = Field(
        None, description="of a table; null: input_ids where there is one, else text"
    )
    split: str = Field("train", description="of a dataset that has several")
    dtype: Literal["uint16", "uint32"] = Field("uint16", description="of .bin files")
    separator: int | None = Field(
        None, ge=0, description="id that ends each document of a token file"
    )
    recall_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the generated text's turns that ask for a number told before, at any "
        "distance (evenly over its doublings), and answer: what a longer memory foretells",
    )
    tokens: int | None = Field(
        None, ge=2, description="most tokens of each shard; null: all there are"
    )
    shards: int = Field(
        1,
        ge=1,
        description="jobs for each system; documents are dealt out to them, or each has generated "
        "text of its own",
    )
    separate_documents: bool = Field(
        False, description="true: each document begins with no context; else they are one text"
    )
    chunk_size: int | None = Field(
        None, ge=1, description="tokens a forward; null: the model's own segment, window, positions"
    )
    overlap: int = Field(
        0,
        ge=0,
        description="tokens that a window repeats of the one before; 0: state is carried, exactly; "
        "above 0: strided, an approximation",
    )
    adaptive: bool = Field(
        False, description="true: begin with the largest chunk that fits into memory"
    )
    systems: dict[Name, StreamedSystem] = Field(
        {}, description="the systems that read it, each with what differs; empty: all, alike"
    )

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.path is None and self.tokens is None:
            raise ValueError("generated text has no end; write tokens, such as 50000")
        return self

    def read_by(self, system: str) -> StreamedSystem:
        """How `system` reads, the stream's own settings filled in."""
        own = self.systems.get(system, StreamedSystem())
        chunk_size = self.chunk_size if own.chunk_size is None else own.chunk_size
        overlap = self.overlap if own.overlap is None else own.overlap
        return own.model_copy(update={"chunk_size": chunk_size, "overlap": overlap})
