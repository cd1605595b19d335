"""Every task, found by looking into this folder."""

import importlib
import pkgutil

from needlework.config import tasks
from needlework.config.base import tagged_union
from needlework.config.tasks.base import Task

for _module in pkgutil.iter_modules(tasks.__path__, f"{tasks.__name__}."):
    if _module.name != __name__:
        importlib.import_module(_module.name)

AnyTask = tagged_union(Task)
"""An entry of `tasks:`, identified by its `type`."""
