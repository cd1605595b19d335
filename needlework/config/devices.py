"""Devices that a plan is made for: resources/devices.yaml, the makers' published numbers."""

from functools import cache
from pathlib import Path

import yaml
from pydantic import Field

from needlework.config.base import Strict

TABLE = Path(__file__).resolve().parents[2] / "resources" / "devices.yaml"


class Device(Strict):
    """What a device has, and how much of it a forward pass reaches."""

    memory_bytes: int = Field(ge=1)
    float32: float = Field(gt=0)
    """FLOP/s of dense products."""
    bfloat16: float = Field(gt=0)
    float16: float | None = Field(None, gt=0)
    """None: as bfloat16."""
    bytes_per_second: float = Field(gt=0)
    """Of memory."""
    host_bytes_per_second: float = Field(2.5e10, gt=0)
    """Of weights that come from main memory each time: PCIe 4.0 with 16 lanes reaches so much."""
    efficiency: float = Field(gt=0, le=1)
    """Share of both speeds that is reached."""
    gpu: bool = True

    def flops_per_second(self, dtype: str) -> float:
        """FLOP/s that are reached in `dtype`."""
        return self.efficiency * (getattr(self, dtype) or self.bfloat16)


@cache
def devices() -> dict[str, Device]:
    """Every device of the table, by name."""
    table = yaml.safe_load(TABLE.read_text())
    return {name: Device.model_validate(found) for name, found in table.items()}
