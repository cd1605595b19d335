"""Devices that a plan can assume: published specifications from resources/devices.yaml."""

from functools import cache

import yaml
from pydantic import Field

from needlework.config.base import Strict
from needlework.runtime.locations import WORKFLOW

TABLE = WORKFLOW / "resources" / "devices.yaml"


class Device(Strict):
    """Memory, arithmetic speed and bandwidth of one device, and the share a forward reaches."""

    memory_bytes: int = Field(ge=1)
    float32: float = Field(gt=0)
    """Peak FLOP/s of dense matrix products."""
    bfloat16: float = Field(gt=0)
    float16: float | None = Field(None, gt=0)
    """None: the same as bfloat16."""
    bytes_per_second: float = Field(gt=0)
    """Memory bandwidth."""
    host_bytes_per_second: float = Field(2.5e10, gt=0)
    """Bandwidth for weights offloaded to main memory; the default is what PCIe 4.0 x16 reaches."""
    efficiency: float = Field(gt=0, le=1)
    """Share of peak arithmetic speed and of memory bandwidth that a forward reaches."""
    gpu: bool = True

    def flops_per_second(self, dtype: str) -> float:
        """FLOP/s that a forward reaches in `dtype`."""
        return self.efficiency * (getattr(self, dtype) or self.bfloat16)


@cache
def devices() -> dict[str, Device]:
    """All devices of resources/devices.yaml, by name."""
    table = yaml.safe_load(TABLE.read_text())
    return {name: Device.model_validate(specification) for name, specification in table.items()}
