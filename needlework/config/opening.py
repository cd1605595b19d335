"""How a model is opened: where its files are, and how its weights are held in memory."""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from needlework.config.base import Strict
from needlework.config.rope import RopeScaling

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of device_map that spread a model over several devices."""

DType = Literal["float32", "bfloat16", "float16"]


def _keys_as_text(value: Any) -> Any:
    # YAML reads a GPU's number as an integer.
    return {str(key): size for key, size in value.items()} if isinstance(value, dict) else value


def _check_sizes(value: dict[str, str]) -> dict[str, str]:
    for device, size in value.items():
        if device != "cpu" and not device.isdecimal():
            raise ValueError(f"unknown device {device}; write a GPU's number, or cpu")
        if not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", size):
            raise ValueError(
                f"{size!r} for {device} is not a size; write a number and its unit, such as 20GiB"
            )
    return value


class Opening(Strict):
    """Keys of a `path` model that say how its weights are held, and by how many processes."""

    quantization: Literal["nf4", "fp4", "int8"] | None = Field(
        None,
        description="weights in 4 bits (nf4, fp4) or 8 (int8) by bitsandbytes (`pip install "
        "'needlework[quantized]'`); activations stay in dtype. null: weights in dtype",
    )
    device_map: (
        Literal["auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda"] | None
    ) = Field(
        None,
        description="placement of layers: auto, balanced, balanced_low_0 and sequential spread "
        "them over the GPUs. null: all on the first GPU, or in main memory without a GPU",
    )
    max_memory: (
        Annotated[dict[str, str], BeforeValidator(_keys_as_text), AfterValidator(_check_sizes)]
        | None
    ) = Field(
        None,
        description="limit on the weights on each device, by GPU number or cpu, such as "
        "{0: 20GiB, cpu: 60GiB}; null: the free memory",
    )
    cpu_offload: bool = Field(
        False,
        description="true: layers that do not fit on the GPUs stay in main memory (slow); false: "
        "the run stops instead. No effect without a GPU",
    )
    offload_folder: str | None = Field(
        None,
        min_length=1,
        description="folder for layers that do not fit in main memory either (slower still); "
        "null: the run stops instead",
    )
    tp: int = Field(1, ge=1, description="processes that split each layer's heads and columns")
    ep: int = Field(1, ge=1, description="processes that split each layer's experts")
    pp: int = Field(1, ge=1, description="GPUs of one process that split the layers")
    dp: int = Field(
        1, ge=1, description="jobs that split a system's samples, each with its own copy"
    )
    cache: Literal["dynamic", "quantized", "offloaded"] = Field(
        "dynamic",
        description="keys and values: dynamic in dtype; quantized in 8-bit floats; offloaded to "
        "main memory except for the current layer (needs a GPU)",
    )
    prefill_chunk_tokens: int | None = Field(
        None,
        ge=1,
        description="prompt tokens per forward pass, which bounds the memory of activations; "
        "answers are equal up to rounding. null: the whole prompt in one pass",
    )
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = Field(None, description="kernel of the model's own attention; null: transformers' default")
    trust_remote_code: bool = Field(
        False, description="true: run Python code that comes with the checkpoint"
    )

    @property
    def processes(self) -> int:
        """Processes that one job starts."""
        return max(self.tp, self.ep)

    @property
    def devices(self) -> int:
        """GPUs that one job uses, if the machine has any."""
        return max(self.processes, self.pp)


class ModelSpec(Strict):
    """Everything needed to open one model, as rules pass it to stages."""

    path: Annotated[str, BeforeValidator(os.fspath)]
    """Checkpoint folder, or owner/name on the hub."""
    revision: str | None = None
    dtype: DType = "float32"
    allow_pickle: bool = False
    rope_scaling: RopeScaling | None = None
    opening: Opening = Opening()

    def dump(self) -> dict[str, Any]:
        """The spec as a rule's param. Without `dp`, which no job reads, so it reruns nothing."""
        return self.model_dump(mode="json", exclude={"opening": {"dp"}})

    def for_training(self, dtype: DType | None = None) -> "ModelSpec":
        """The same weights opened plainly in one process, by default in their own dtype."""
        return self.model_copy(update={"dtype": dtype or self.dtype, "opening": Opening()})
