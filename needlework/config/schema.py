"""JSON schema of experiment files, for editors and validators."""

from typing import Any

from needlework.config.experiment import Experiment


def experiment_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of an experiment file."""
    schema = Experiment.model_json_schema()
    for section in schema["properties"].values():
        if "patternProperties" in section:
            # pydantic describes valid names but does not exclude invalid ones.
            section["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
