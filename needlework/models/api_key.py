"""The key of an API: from the environment, and nowhere else."""

import os

from needlework.config.experiment import Experiment
from needlework.config.models import Api


def api_key(variable: str | None) -> str | None:
    """What the environment variable holds; None where no variable is named.

    Raises:
        ValueError: it is not set, or holds what cannot be a key. The key is not told.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"key_variable {variable}: is not set in the environment; export it, or write "
            "key_variable: null for an API that asks for no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        # An HTTP library would tell the whole header, and so the key, in its own error.
        raise ValueError(f"key_variable {variable}: holds no key but other text; export the key")
    return key


def require_keys(experiment: Experiment) -> None:
    """Find out before any work whether every API that is asked has its key.

    Raises:
        ValueError: one has not; see `api_key`.
    """
    for name in dict.fromkeys(system.model for system in experiment.systems.values()):
        model = experiment.models[name]
        if isinstance(model, Api):
            try:
                api_key(model.key_variable)
            except ValueError as error:
                raise ValueError(f"models.{name}.{error}") from None
