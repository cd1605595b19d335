"""Which APIs a run will ask, and whether their keys are there."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from needlework.config.experiment import Experiment
from needlework.config.models import Api
from needlework.evaluation.answer_journal import journal_of
from needlework.evaluation.api.answers import is_answered
from needlework.models.api.key import api_key


def without_key(experiment: Experiment) -> dict[str, str]:
    """Models behind an API, of any system, whose key is not there: why, in one line each."""
    found = {}
    for name in dict.fromkeys(system.model for system in experiment.systems.values()):
        model = experiment.models[name]
        if isinstance(model, Api):
            try:
                api_key(model.key_env)
            except ValueError as error:
                found[name] = f"models.{name}.{error}"
    return found


def require_keys(
    experiment: Experiment, results: Path, missing: dict[str, str], due: Iterable[Path]
) -> None:
    """Find out before any work whether an API has to be asked that has no key.

    Args:
        results: the experiment's folder.
        missing: of `without_key`.
        due: what the run is to make.

    Raises:
        ValueError: one has.
    """
    due = set(due)
    for system, entry in experiment.systems.items():
        if entry.model not in missing:
            continue
        for task in experiment.tasks:
            for length in experiment.lengths:
                cell = f"{task}/{length}.parquet"
                predictions = results / "predictions" / system / cell
                samples = results / "samples" / experiment.root_model(entry.model) / cell
                model = experiment.models[entry.model]
                if predictions in due and (
                    samples in due
                    or not is_answered(model, _read(samples), journal_of(predictions))
                ):
                    raise ValueError(missing[entry.model])


def _read(samples: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(samples)
    except PolarsError as error:
        told = str(error).partition("\n")[0]
        raise ValueError(f"{samples}: no whole table ({told}); delete it and run again") from None
