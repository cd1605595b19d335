"""Run the benchmarks (`make bench`) and write their tables as Markdown.

Each table goes to benchmarks/results/<name>.md with date, processor, versions and commit. Arguments
select parts: `make bench PARTS=attention`.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.attention import attention_table
from benchmarks.generation import generation_table
from benchmarks.official import official_table
from benchmarks.opening import opening_table
from benchmarks.plan import plan_table
from benchmarks.streaming import streaming_table
from benchmarks.training import training_table
from needlework.pipeline.stage import package_versions
from needlework.runtime.device import device_name

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    torch.set_num_threads(1)
    parts = {
        "attention": attention_table,
        "generation": generation_table,
        "official": official_table,
        "opening": opening_table,
        "plan": plan_table,
        "streaming": streaming_table,
        "training": training_table,
    }
    for name in sys.argv[1:] or parts:
        if name not in parts:
            sys.exit(f"benchmarks: unknown part {name}; choose from {', '.join(parts)}")
        table = parts[name]()
        path = ROOT / "benchmarks" / "results" / f"{name}.md"
        path.write_text(f"{table}\n{_conditions()}")
        print(path.read_text())


def _conditions() -> str:
    versions = package_versions()
    shown = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "torch", "transformers", "tokenizers")
    )
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return (
        f"\n{datetime.now(UTC):%Y-%m-%d}, {device_name()}, "
        f"{os.cpu_count()} cores, {shown}, commit {commit or 'none'}.\n"
    )


if __name__ == "__main__":
    main()
