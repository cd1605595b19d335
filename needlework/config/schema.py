"""The JSON schema of experiment files, for editors and for checks."""

from typing import Any

from needlework.config.experiment import Experiment


def experiment_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of an experiment file."""
    schema = Experiment.model_json_schema()
    for part in schema["properties"].values():
        if "patternProperties" in part:
            # pydantic says what a plain name leads to, not that there are no others.
            part["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
