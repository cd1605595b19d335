"""What jobs reserve: memory, time and GPUs from the plan, which is made once and cached."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from needlework.config.experiment import Experiment
from needlework.runtime.locations import PACKAGE, WORKFLOW

CACHE = Path(".snakemake") / "needlework"
_PLANNED_KEYS = {
    "models",
    "systems",
    "lengths",
    "length_unit",
    "tasks",
    "samples",
    "streams",
    "gates",
    "device",
}
"""Keys of the experiment that the plan depends on."""
_SAFETY = 3
"""Time limit per planned second: weights have to be read, and others use the machine."""
_SMALL_BYTES, _SMALL_LENGTH, _SMALL_STREAM = 2**26, 2**14, 2**17
"""Weights, length and stream tokens up to which every rule's own numbers suffice."""


class JobResources:
    """Memory, time and GPUs of the jobs that open a model.

    A rule's own numbers apply to models that cannot be planned, or that need less. The plan is made
    by another process, as importing torch takes seconds, when a job first needs it. It is cached in
    .snakemake under a hash of what it depends on. Experiments with small weights and short lengths
    are not planned.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment

    def mem_mb(self, least: int, *job: str) -> int:
        """Megabytes that `job` needs, at least `least`.

        Args:
            job: its place in the plan, such as "evaluate", system.
        """
        planned = self._find(job)
        return least if planned is None else max(least, -(-planned["mem_bytes"] // 10**6))

    def minutes(self, least: int, *job: str) -> int:
        """Time limit of `job` in minutes, at least `least`."""
        planned = self._find(job)
        return least if planned is None else max(least, round(_SAFETY * planned["seconds"] / 60))

    def gpus(self, *job: str) -> int:
        """GPUs that `job` runs on; 0 if the experiment's device is a CPU."""
        if self.experiment.device == "cpu":
            return 0
        planned = self._find(job)
        return planned["gpus"] if planned else 1

    def _find(self, job: tuple[str, ...]) -> dict[str, Any] | None:
        entry = {} if self._is_small else self._plan
        for key in job:
            entry = entry.get(str(key), {})
        return entry or None

    @property
    def _checkpoints(self) -> list[Path]:
        """Folders, or hub names, of weights that exist before the run."""
        models = (model.local for model in self.experiment.models.values())
        paths = [model.weights_path for model in models if model is not None]
        return [Path(path) for path in paths if path is not None]

    @cached_property
    def _is_small(self) -> bool:
        longest_stream = max((s.tokens or 0 for s in self.experiment.streams.values()), default=0)
        folders = self._checkpoints
        all_local = len(folders) > 0 and all(folder.is_dir() for folder in folders)
        weights = sum(
            file.stat().st_size
            for folder in folders
            for kind in ("*.safetensors", "*.bin")
            for file in folder.glob(kind)
        )
        return (
            all_local
            and 0 < weights <= _SMALL_BYTES
            and max(self.experiment.lengths) <= _SMALL_LENGTH
            and longest_stream <= _SMALL_STREAM
        )

    @cached_property
    def _plan(self) -> dict[str, Any]:
        path = CACHE / f"plan-{self._key()}.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            pass
        done = subprocess.run(
            [sys.executable, "-m", "needlework.planning.job_resources"],
            input=json.dumps(self.experiment.model_dump(mode="json")),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
            check=False,
        )
        if done.returncode != 0:
            return {}
        plan = json.loads(done.stdout)
        if self._hub_systems <= plan["evaluate"].keys():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(done.stdout)
            partial.replace(path)
        return plan

    @property
    def _hub_systems(self) -> set[str]:
        """Systems whose models come from the hub, which may be unreachable the first time."""
        systems = set()
        for name, system in self.experiment.systems.items():
            *_, (_, root) = self.experiment.ancestors(system.model)
            path = None if root.local is None else root.local.weights_path
            if path is not None and not Path(path).is_dir():
                systems.add(name)
        return systems

    def _key(self) -> str:
        """A hash of what the plan depends on: the experiment, config.json files, code, devices."""
        dump = self.experiment.model_dump(mode="json", include=_PLANNED_KEYS)
        files = [folder / "config.json" for folder in self._checkpoints]
        files += sorted((PACKAGE / "planning").glob("*.py"))
        files.append(WORKFLOW / "resources" / "devices.yaml")
        digest = hashlib.sha256(json.dumps(dump, sort_keys=True).encode())
        for file in files:
            digest.update(file.read_bytes() if file.is_file() else b"")
        return digest.hexdigest()[:16]
