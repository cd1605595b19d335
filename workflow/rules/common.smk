"""What rules share: wildcards, resources, and functions by subject in common/.

A function with one argument, `wildcards`, is an input or param of the rules that name it.
"""

import re

from needlework.pipeline.job_resources import JobResources


def one_of(names):
    """A wildcard constraint that only `names` match."""
    return "|".join(map(re.escape, names)) or "none"


def dump(part):
    """A part of the experiment as a rule's param, so that editing it reruns the rule."""
    return None if part is None else part.model_dump(mode="json")


def code_of(script, modules):
    """Params `code` and `modules` of a rule whose script imports `modules(wildcards)` by name."""
    return {
        "code": lambda wildcards: code_version(script, *modules(wildcards)),
        "modules": modules,
    }


JOB_RESOURCES = JobResources(experiment)
CELLS = [(task, length) for task in experiment.tasks for length in experiment.lengths]
"""Task and length of every cell, in the experiment's order."""
ANSWER_STORE = "results/.answers"
"""Folder of answers that all experiments share."""


def planned(*job, runtime, mem_mb=0, mem_mb_per_thread=0):
    """Resources of jobs that open a model: those planned, or the given ones if larger.

    `job` is the job's place in the plan with wildcards in braces, such as "finetune", "{model}".
    """

    def keys(wildcards):
        return [part.format(**dict(wildcards.items())) for part in job]

    def memory(wildcards, attempt, threads):
        least = mem_mb + mem_mb_per_thread * threads
        return JOB_RESOURCES.mem_mb(least, *keys(wildcards)) * attempt

    def minutes(wildcards):
        return JOB_RESOURCES.minutes(runtime, *keys(wildcards))

    def gpus(wildcards):
        return JOB_RESOURCES.gpus(*keys(wildcards))

    return {"mem_mb": memory, "runtime": minutes, "gpu": gpus}


include: "common/models.smk"
include: "common/systems.smk"
include: "common/texts.smk"
include: "common/training.smk"
include: "common/streams.smk"
include: "common/figures.smk"
include: "common/targets.smk"


wildcard_constraints:
    system=one_of([*experiment.systems, *experiment.stream_systems()]),
    model=one_of(experiment.models),
    task=one_of(experiment.tasks),
    tokenizer=one_of(experiment.models),
    haystack=one_of(experiment.haystacks),
    gates=one_of(experiment.gates),
    data=one_of(experiment.finetune_data),
    stream=one_of(experiment.streams),
    shard=r"\d+",
    length=r"\d+",


def tables_of(stage, systems=None):
    """Paths of one stage's tables, in the order of the experiment's systems."""
    return expand(
        f"{RESULTS}/{stage}/{{system}}.parquet",
        system=experiment.systems if systems is None else systems,
    )
