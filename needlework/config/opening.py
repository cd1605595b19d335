"""How a checkpoint is opened: number of bits, devices, processes, cache."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from needlework.config.base import Strict

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of device_map that share a model out over devices."""


def _as_text(value: Any) -> Any:
    # YAML reads the number of a GPU as one.
    return {str(key): size for key, size in value.items()} if isinstance(value, dict) else value


def _sizes(value: dict[str, str]) -> dict[str, str]:
    for device, size in value.items():
        if device != "cpu" and not device.isdecimal():
            raise ValueError(f"has {device}, which is no device; write a GPU's number, or cpu")
        if not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", size):
            raise ValueError(f"gives {device} {size!r}; write a number and its unit, such as 20GiB")
    return value


class Opening(Strict):
    """Keys of a `path` model that say how it is held in memory, and by how many processes."""

    quantization: Literal["nf4", "fp4", "int8"] | None = Field(
        None,
        description="weights in 4 (nf4, fp4) or 8 bits, by bitsandbytes (`pip install "
        "'needlework[quantized]'`); activations stay in dtype. null: weights as dtype says",
    )
    device_map: (
        Literal["auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda"] | None
    ) = Field(
        None,
        description="where layers lie: auto, balanced, balanced_low_0 and sequential share them "
        "out over the GPUs. null: all on the first GPU, or in main memory where there is none",
    )
    max_memory: (
        Annotated[dict[str, str], BeforeValidator(_as_text), AfterValidator(_sizes)] | None
    ) = Field(
        None,
        description="most memory that weights take of each device, by GPU number or cpu, such as "
        "{0: 20GiB, cpu: 60GiB}; null: what is free",
    )
    cpu_offload: bool = Field(
        False,
        description="true: layers that no GPU has room for lie in main memory (slow); false: that "
        "stops the run. Where there is no GPU it changes nothing",
    )
    offload_folder: str | None = Field(
        None,
        min_length=1,
        description="folder for layers that main memory has no room for either (slower still); "
        "null: that stops the run",
    )
    tp: int = Field(1, ge=1, description="processes that share out each layer's heads and columns")
    ep: int = Field(1, ge=1, description="processes that share out the experts of each layer")
    pp: int = Field(1, ge=1, description="GPUs of one process that share out the layers")
    dp: int = Field(
        1, ge=1, description="jobs that share out the samples of a cell, each with a model"
    )
    cache: Literal["dynamic", "quantized", "offloaded"] = Field(
        "dynamic",
        description="keys and values: dynamic in dtype; quantized in 8-bit floats; offloaded to "
        "main memory but for the layer at work (needs a GPU)",
    )
    prefill_chunk_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of a prompt in one forward, so that what a forward makes (activations) "
        "is bounded; answers are the same up to rounding. null: the whole prompt at once",
    )
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = Field(
        None, description="what computes the model's own attention; null: as transformers chooses"
    )
    trust_remote_code: bool = Field(
        False, description="true: Python code that comes with the checkpoint is run, unseen"
    )

    @property
    def processes(self) -> int:
        """Processes that one job starts."""
        return max(self.tp, self.ep)

    @property
    def devices(self) -> int:
        """GPUs that one job uses, where there are any."""
        return max(self.processes, self.pp)
