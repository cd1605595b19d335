"""Devices by name, and this machine measured."""

import psutil
import pytest

from needlework.config.devices import devices
from needlework.planning.device_probe import device


def test_a_name_is_an_entry_of_the_file():
    assert device("h100-80gb") == devices()["h100-80gb"]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"^device: 'h100' is unknown; write one of here, .*h100-80gb"
    ):
        device("h100")


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_this_machine_is_its_cpu():
    measured = device("here")
    assert not measured.gpu
    assert measured.memory_bytes == psutil.virtual_memory().total
    # From an emulated dtype to the fastest cores, in operations and bytes per second.
    for rate in (measured.float32, measured.bfloat16, measured.bytes_per_second):
        assert 1e7 < rate < 1e14
