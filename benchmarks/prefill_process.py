"""Measure prefill with one system in a separate process.

Arguments: the system's name, then lengths in ascending order. Prints one JSON line per length:
tokens, seconds, and peak bytes above those held before.
"""

import json
import resource
import sys

import psutil
import torch

from benchmarks.attention_model import SYSTEMS, opened, prefill_seconds, prompt, under


def held_bytes() -> int:
    """Resident memory of the process; on CUDA, bytes of its tensors."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Peak memory of the process so far. Lengths ascend, so the current prefill sets it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    torch.set_num_threads(1)
    name, *lengths = sys.argv[1:]
    with under(opened(), SYSTEMS[name]) as model:
        prefill_seconds(model, prompt(model, int(lengths[0]) // 2))
        for length in map(int, lengths):
            ids, before = prompt(model, length), held_bytes()
            _, seconds = prefill_seconds(model, ids)
            print(json.dumps([length, seconds, peak_bytes() - before]), flush=True)


if __name__ == "__main__":
    main()
