"""Texts that samples and rows to train on are made from: the user's files, and the code."""

import re
from pathlib import Path


def files_below(path):
    """A file, or the files of a folder without hidden ones; none if there is neither."""
    path = Path(path)
    if not path.is_dir():
        return [str(path)] if path.is_file() else []
    files = (file for file in path.rglob("*") if file.is_file())
    hidden = re.compile(r"(^|/)\.")
    return sorted(
        str(file) for file in files if not hidden.search(str(file.relative_to(path)))
    )


def haystack_of(wildcards):
    """Haystack {haystack}: where its text is."""
    return dump(experiment.haystacks[wildcards.haystack])


def haystack_files(wildcards):
    """The user's files of haystack {haystack}; none if it is on the hub."""
    return files_below(experiment.haystacks[wildcards.haystack].path)


def haystack_tables(tokenizer, task, length):
    """The sentences that `task` hides its needles in, if they come from the user's text."""
    name = experiment.tasks[task].haystack_name if task in experiment.tasks else None
    return expand(
        f"{RESULTS}/haystacks/{{tokenizer}}/{{haystack}}/{{length}}.parquet",
        tokenizer=tokenizer,
        haystack=[name] if name in experiment.haystacks else [],
        length=length,
    )


def haystack_of_samples(wildcards):
    """The sentences that {task} hides its needles in at {length}."""
    return haystack_tables(wildcards.tokenizer, wildcards.task, wildcards.length)


def task_of(wildcards):
    """The settings of {task}."""
    return dump(experiment.tasks[wildcards.task])


METRICS = {name: task.metric for name, task in experiment.tasks.items()}


def task_metric(wildcards):
    """The metric of {task}."""
    return METRICS[wildcards.task]


def answer_type(wildcards):
    """What a right answer of {task} is."""
    return experiment.tasks[wildcards.task].answer_type


def task_files(wildcards):
    """The user's files that {task} reads at {length}."""
    files = experiment.tasks[wildcards.task].files
    return [file.replace("{length}", wildcards.length) for file in files]


def task_modules(wildcards):
    """Modules that make the samples of {task}."""
    return [experiment.tasks[wildcards.task].module]


def finetune_data_of(wildcards):
    """The settings of finetune_data {data}."""
    return dump(experiment.finetune_data[wildcards.data])


def finetune_data_files(wildcards):
    """The user's files of finetune_data {data}; none if rows are generated, or on the hub."""
    path = experiment.finetune_data[wildcards.data].source_path
    return [] if path is None else files_below(path)


def finetune_data_haystacks(wildcards):
    """The sentences that the task of finetune_data {data} hides its needles in."""
    data = experiment.finetune_data[wildcards.data]
    name = task_name_of_data(wildcards)
    return [
        table
        for length in data.lengths
        for table in haystack_tables(wildcards.tokenizer, name, length)
    ]


def task_name_of_data(wildcards):
    """The task that makes the rows of finetune_data {data}; None if no task does."""
    return experiment.finetune_data[wildcards.data].task_name


def task_of_finetune_data(wildcards):
    """The settings of that task."""
    return dump(experiment.tasks.get(task_name_of_data(wildcards)))


def depths_of_finetune_data(wildcards):
    """Depths of that task's needles."""
    return None if task_name_of_data(wildcards) is None else experiment.depths


def finetune_data_modules(wildcards):
    """Modules that make the rows of finetune_data {data}."""
    data = experiment.finetune_data[wildcards.data]
    tasks = [] if data.task_name is None else [data.task_name]
    return [data.module, *(experiment.tasks[task].module for task in tasks)]
