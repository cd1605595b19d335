"""Texts that samples and rows to train on are made from: the user's files, and the code."""

import re
from pathlib import Path


def files_below(path):
    """A file, or those of a folder, hidden ones left out; none where there is neither."""
    path = Path(path)
    if not path.is_dir():
        return [str(path)] if path.is_file() else []
    found = (file for file in path.rglob("*") if file.is_file())
    hidden = re.compile(r"(^|/)\.")
    return sorted(
        str(file) for file in found if not hidden.search(str(file.relative_to(path)))
    )


def haystack_files(name):
    """The user's files of haystack `name`; none where it is a hub's."""
    return files_below(experiment.haystacks[name].path)


def haystack_of(tokenizer, task, length):
    """The sentences that `task` hides its needles in, if they are of the user's text."""
    name = getattr(experiment.tasks.get(task), "haystack", None)
    found = [name] if name in experiment.haystacks else []
    return expand(
        f"{RESULTS}/haystacks/{{tokenizer}}/{{haystack}}/{{length}}.parquet",
        tokenizer=tokenizer,
        haystack=found,
        length=length,
    )


def task_modules(name):
    """Modules that make the samples of task `name`."""
    return [experiment.tasks[name].module]


def data_files(name):
    """The user's files of finetune_data `name`; none where rows are generated, or a hub's."""
    path = getattr(experiment.finetune_data[name], "path", None)
    return [] if path is None else files_below(path)


def data_modules(name):
    """Modules that make the rows of finetune_data `name`."""
    data = experiment.finetune_data[name]
    own = [] if data.type != "task" else task_modules(data.task)
    return [data.module, *own]
