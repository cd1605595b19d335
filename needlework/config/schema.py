"""The JSON schema of experiment files, for editors and for checks."""

from typing import Any

from needlework.config.experiment import Experiment


def experiment_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of an experiment file."""
    schema = Experiment.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
