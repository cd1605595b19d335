"""What rules share: wildcards, reservations, and functions, by subject in common/."""

import re

from needlework.pipeline.job_resources import JobResources


include: "common/models.smk"
include: "common/systems.smk"
include: "common/texts.smk"
include: "common/training.smk"
include: "common/streams.smk"
include: "common/figures.smk"
include: "common/targets.smk"


JOB_RESOURCES = JobResources(experiment)


wildcard_constraints:
    system="|".join(map(re.escape, [*experiment.systems, *experiment.stream_systems()])),
    model="|".join(map(re.escape, experiment.models)),
    task="|".join(map(re.escape, experiment.tasks)),
    tokenizer="|".join(map(re.escape, experiment.models)),
    haystack="|".join(map(re.escape, experiment.haystacks)) or "none",
    gates="|".join(map(re.escape, experiment.gates)) or "none",
    data="|".join(map(re.escape, experiment.finetune_data)) or "none",
    stream="|".join(map(re.escape, experiment.streams)) or "none",
    shard=r"\d+",
    length=r"\d+",


def dump(part):
    """The keys of a part of the experiment as a rule's param, so that an edit reruns its readers."""
    return None if part is None else part.model_dump(mode="json")


def cells(stage, systems=None):
    """Paths of one stage's tables, over systems, tasks and lengths in the experiment's order."""
    return expand(
        f"{RESULTS}/{stage}/{{system}}/{{task}}/{{length}}.parquet",
        system=experiment.systems if systems is None else systems,
        task=experiment.tasks,
        length=experiment.lengths,
    )
