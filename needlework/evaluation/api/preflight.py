"""Checks before a run that every API it will call has a key."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from needlework.config.experiment import Experiment
from needlework.evaluation.answer_journal import journal_path
from needlework.evaluation.api.answers import is_answered
from needlework.models.api.key import api_key


def missing_keys(experiment: Experiment) -> dict[str, str]:
    """Find models behind an API whose key is missing; return an error message for each by name."""
    messages = {}
    for name in dict.fromkeys(system.model for system in experiment.systems.values()):
        api = experiment.models[name].remote
        if api is not None:
            try:
                api_key(api.key_env)
            except ValueError as error:
                messages[name] = f"models.{name}.{error}"
    return messages


def require_keys(
    experiment: Experiment, results: Path, missing: dict[str, str], due: Iterable[Path]
) -> None:
    """Fail if the run has to call an API whose key is missing.

    Args:
        results: the experiment's results folder.
        missing: result of `missing_keys`.
        due: files that the run will make.

    Raises:
        ValueError: an API without a key has to be called.
    """
    due = set(due)
    for system, entry in experiment.systems.items():
        api = experiment.models[entry.model].remote
        if api is None or entry.model not in missing:
            continue
        predictions = results / "predictions" / f"{system}.parquet"
        if predictions not in due:
            continue
        journal, folder = journal_path(predictions), results / "samples"
        for task, length in product(experiment.tasks, experiment.lengths):
            samples = folder / experiment.root_model(entry.model) / task / f"{length}.parquet"
            if samples in due or not is_answered(api, _read(samples), journal):
                raise ValueError(missing[entry.model])


def _read(samples: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(samples)
    except PolarsError as error:
        message = str(error).partition("\n")[0]
        raise ValueError(
            f"{samples}: is not a complete table ({message}); delete it and run again"
        ) from None
