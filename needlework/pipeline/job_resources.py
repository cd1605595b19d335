"""What jobs reserve, for the rules: from the plan, made once for an experiment and remembered."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from needlework.config.experiment import Experiment
from needlework.config.models import Checkpoint
from needlework.runtime.locations import PACKAGE, WORKFLOW

KEPT = Path(".snakemake") / "needlework"
_READ = (
    "models",
    "systems",
    "lengths",
    "length_unit",
    "tasks",
    "samples",
    "streams",
    "gates",
    "device",
)
_SAFETY = 3
"""Times the planned seconds that a job may take: other users of the machine, weights to read."""


class JobResources:
    """mem_mb, minutes and gpus of the jobs that open a model; a rule's own numbers where a model
    cannot be planned, or needs less.

    The plan is made by a process of its own, as torch takes seconds to import, when a job first
    asks, and remembered in .snakemake by what it was made of. Models whose weights on disk are
    small at lengths that are short are not planned: they need less than any rule's own numbers.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment

    def mem_mb(self, floor: int, *job: str) -> int:
        """`floor`, or what `job` needs; such as "evaluate", system, length."""
        found = self._find(job)
        return floor if found is None else max(floor, -(-found["mem_bytes"] // 10**6))

    def minutes(self, floor: int, *job: str) -> int:
        """`floor`, or minutes that `job` may take at most."""
        found = self._find(job)
        return floor if found is None else max(floor, round(_SAFETY * found["seconds"] / 60))

    def gpus(self, *job: str) -> int:
        """GPUs that `job` runs on; 0 where the experiment's device is none."""
        if self.experiment.device == "cpu":
            return 0
        found = self._find(job)
        return found["gpus"] if found else 1

    def _find(self, job: tuple[str, ...]) -> dict[str, Any] | None:
        found = {} if self._is_small else self._plan
        for part in job:
            found = found.get(str(part), {})
        return found or None

    @cached_property
    def _is_small(self) -> bool:
        longest = max(self.experiment.lengths)
        read = [stream.tokens or 0 for stream in self.experiment.streams.values()]
        folders = [
            Path(model.path)
            for model in self.experiment.models.values()
            if isinstance(model, Checkpoint)
        ]
        known = len(folders) > 0 and all(folder.is_dir() for folder in folders)
        weights = sum(
            file.stat().st_size
            for folder in folders
            for kind in ("*.safetensors", "*.bin")
            for file in folder.glob(kind)
        )
        return known and 0 < weights <= 2**26 and longest <= 2**14 and max(read, default=0) <= 2**17

    @cached_property
    def _plan(self) -> dict[str, Any]:
        told = json.dumps(self.experiment.model_dump(mode="json"))
        path = KEPT / f"reserve-{self._key()}.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            pass
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        command = [sys.executable, "-m", "needlework.planning.job_resources"]
        done = subprocess.run(
            command, input=told, capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode != 0:
            return {}
        found = json.loads(done.stdout)
        if self._fetched <= found["evaluate"].keys():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(done.stdout)
            partial.replace(path)
        return found

    @property
    def _fetched(self) -> set[str]:
        """Systems whose models are the hub's, which may not be there the first time."""
        models = self.experiment.models
        roots = {
            name: models[self.experiment.root_model(system.model)]
            for name, system in self.experiment.systems.items()
            if not self.experiment.is_api(name)  # of its model no more than the tokenizer is here
        }
        return {
            name
            for name, root in roots.items()
            if isinstance(root, Checkpoint) and not Path(root.path).is_dir()
        }

    def _key(self) -> str:
        """A hash of what the plan is made of: the experiment, config.json files, code."""
        dump = self.experiment.model_dump(mode="json", include=set(_READ))
        folders = [
            Path(m.path) for m in self.experiment.models.values() if isinstance(m, Checkpoint)
        ]
        files = [folder / "config.json" for folder in folders]
        files += sorted((PACKAGE / "planning").glob("*.py"))
        files.append(WORKFLOW / "resources" / "devices.yaml")
        made = hashlib.sha256(json.dumps(dump, sort_keys=True).encode())
        for file in files:
            made.update(file.read_bytes() if file.is_file() else b"")
        return made.hexdigest()[:16]
