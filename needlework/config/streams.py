"""Streams: long texts that systems read from end to end, for perplexity by position."""

from typing import Literal, Self

from pydantic import Field, model_validator

from needlework.config.attention.registry import AnyAttention
from needlework.config.base import Name, Strict
from needlework.config.paths import SPECIAL_TOKENS


class StreamedSystem(Strict):
    """How one system reads a stream; omitted keys default to the stream's."""

    model: Name | None = Field(
        None, description="a name under models, for a system that only this stream uses"
    )
    attention: AnyAttention | None = Field(
        None,
        description="attention of a system that only this stream uses; null: the model's own",
    )
    chunk_size: int | None = Field(
        None, ge=1, description="tokens per forward; null: the stream's, or the model's default"
    )
    overlap: int | None = Field(
        None, ge=0, description="above 0: strided windows; null: the stream's"
    )
    window_batch_size: int = Field(1, ge=1, description="strided windows per forward")


class Stream(Strict):
    """A long text, generated or from disk, and how systems read it."""

    path: str | None = Field(
        None,
        min_length=1,
        description="token files (.bin, .npy), text (.txt, .md), tables (.parquet, .jsonl, .json, "
        ".csv), a folder of one of these, a saved `datasets` folder, or an owner/name on the hub; "
        "null: generated text",
    )
    column: str | None = Field(
        None, description="column of a table; null: input_ids if present, else text"
    )
    split: str = Field("train", description="split of a dataset")
    dtype: Literal["uint16", "uint32"] = Field("uint16", description="integer type of .bin files")
    separator: int | None = Field(
        None, ge=0, description="token id that ends each document of a token file"
    )
    recall_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the generated text's turns that ask for an earlier number and answer "
        "it; distances are spread evenly over powers of two, so longer memory lowers the loss",
    )
    tokens: int | None = Field(
        None, ge=2, description="maximum tokens per shard; null: the whole text"
    )
    shards: int = Field(
        1,
        ge=1,
        description="jobs per system; documents are divided among them, or each generates its own "
        "text",
    )
    separate_documents: bool = Field(
        False,
        description="true: each document starts with an empty context; false: documents form one "
        "text",
    )
    chunk_size: int | None = Field(
        None,
        ge=1,
        description="tokens per forward; null: the model's segment, window or position limit",
    )
    overlap: int = Field(
        0,
        ge=0,
        description="tokens that a window shares with the one before; 0: carry the state (exact); "
        "above 0: strided windows (an approximation)",
    )
    bos: Literal["each_window", "first", "none"] = Field(
        "first",
        description="where BOS stands; each_window: at the start of each document and of each "
        "strided window, as models such as Gemma need; first: at the start of each document, if "
        "the tokenizer adds it; none: nowhere (token files are read as they are)",
    )
    special_tokens: Literal["text", "allow"] = Field("text", description=SPECIAL_TOKENS)
    adaptive: bool = Field(
        False, description="true: start with the largest chunk that fits into memory"
    )
    systems: dict[Name, StreamedSystem] = Field(
        {}, description="systems that read this stream, with their own settings; empty: all systems"
    )

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.path is None and self.tokens is None:
            raise ValueError("generated text has no end; set tokens, such as 50000")
        return self

    def read_by(self, system: str) -> StreamedSystem:
        """How `system` reads this stream, with the stream's chunk size and overlap as defaults."""
        own = self.systems.get(system, StreamedSystem())
        chunk_size = self.chunk_size if own.chunk_size is None else own.chunk_size
        overlap = self.overlap if own.overlap is None else own.overlap
        return own.model_copy(update={"chunk_size": chunk_size, "overlap": overlap})
