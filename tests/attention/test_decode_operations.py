"""What a decode step asks of a device in each layer: on a GPU, launches and waits are its time."""

import pytest
import torch
from support.tiny_models import prompts, tiny
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from needlework.attention.apply import apply
from needlework.attention.seer.gates import Gates
from needlework.config.attention.random import Random
from needlework.config.attention.seer import Seer
from needlework.config.attention.sketchwalk import SketchWalk
from needlework.config.attention.window import Window
from needlework.config.attention.xattention import XAttention

pytestmark = pytest.mark.slow

BLOCKS = {"block_size": 8, "dense_layers": 0}
TOP = {**BLOCKS, "top_k_blocks": 4}
# Views cost nothing on a device.
VIEWS = {
    "view",
    "_unsafe_view",
    "expand",
    "transpose",
    "unsqueeze",
    "select",
    "slice",
    "t",
    "squeeze",
    "permute",
    "as_strided",
    "alias",
    "detach",
    "split",
    "unbind",
}
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh")
"""Reading a number, boolean indexing, and copying numbers to the device."""


class Kernels(TorchDispatchMode):
    """Counts operations other than views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def seer(model, folder):
    Gates.new(model, block_size=8).save(folder)
    return Seer(gates=str(folder), **TOP)


# System, and the largest number of operations per layer, the rest of the layer included.
CASES = {
    "dense": (None, 45),
    "sketchwalk": (lambda *_: SketchWalk(**TOP), 80),
    "sketchwalk, heads apart": (lambda *_: SketchWalk(heads="sum", walk="off", **TOP), 75),
    "boxes": (lambda *_: SketchWalk(keys="box", heads="sum", walk="off", **TOP), 85),
    "xattention": (lambda *_: XAttention(stride=4, **TOP), 70),
    "random": (lambda *_: Random(**TOP), 83),
    "window": (lambda *_: Window(recent_tokens=20, **BLOCKS), 50),
    "seer": (seer, 116),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_of_a_decode_step_has_few_operations_and_no_waits(name, tmp_path):
    build, limit = CASES[name]
    found = []
    for layers in (1, 3):
        model = tiny(differing={"num_hidden_layers": layers})
        inputs = prompts([70, 61])
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        handle = apply(model, build(model, tmp_path / str(layers))) if build else None
        with torch.no_grad():
            cache = model(ids[:, :68], attention_mask=mask[:, :68]).past_key_values
            step = {"attention_mask": mask[:, :69], "past_key_values": cache}
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                model(ids[:, 68:69], **step)
            with Kernels() as kernels:
                model(ids[:, 69:70], **{**step, "attention_mask": mask})
        events = [event.name for event in profiler.events()]
        found.append([kernels.count, *map(events.count, WAITS)])
        if handle is not None:
            handle.remove()
    operations, *waits = [(many - one) / 2 for one, many in zip(*found, strict=True)]
    assert waits == [0, 0, 0]
    assert operations <= limit
