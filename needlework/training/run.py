"""Run one training, in this process or in several that torchrun or accelerate start."""

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import torch
import transformers
from accelerate import PartialState
from polars.exceptions import PolarsError
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from needlework.config import training
from needlework.config.training import TrainingLoop
from needlework.models.checkpoint import save_model
from needlework.runtime.processes import error_file, exit_with_parent, log_to_parent, run_processes
from needlework.training.checkpoints import Checkpoints, fingerprint
from needlework.training.state import whole

Training = Callable[..., None]
"""(recipe, checkpoints, **arguments) -> None; leaves what it makes in `checkpoints.product`."""
LAYOUT = ("checkpoint_every", "keep_checkpoints")
"""Keys of a recipe that its product does not depend on."""


def run(
    train: Training,
    recipe: TrainingLoop,
    folder: str | Path,
    *,
    threads: int,
    decisive: dict[str, Any],
    validation: tuple[str, dict[str, Any]] | None = None,
    **arguments: Any,
) -> Checkpoints:
    """Train, from the last whole checkpoint in `folder` if there is one.

    Args:
        train: a function of a module, called in each process.
        recipe: says how many processes there are, and by what they are started.
        folder: of the checkpoints; to be removed once the product is moved to its place.
        threads: of all processes together.
        decisive: what else decides the product, such as the hashes of what files hold.
        validation: `module:class` of a `loop.Validate`, and what it is made with; each process
            makes its own and hands it to `train` as `validate`.
        arguments: of `train`, which JSON can hold.

    Raises:
        ValueError: what the user has to mend, from whichever process.
    """
    job = {
        "train": f"{train.__module__}:{train.__qualname__}",
        "recipe_type": type(recipe).__name__,
        "recipe": recipe.model_dump(mode="json"),
        "folder": str(folder),
        "fingerprint": fingerprint(
            recipe=recipe.model_dump(mode="json", exclude=set(LAYOUT)),
            versions=[torch.__version__, transformers.__version__],
            arguments=arguments,
            validation=validation,
            **decisive,
        ),
        "threads": max(1, threads // recipe.processes),
        "validation": validation,
        "arguments": arguments,
    }
    if recipe.processes == 1 and job["recipe"].get("accelerate_config") is None:
        _train(job)
    else:
        _start(job, recipe)
    return _checkpoints(job)


def write_product(
    checkpoints: Checkpoints,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    metrics: pl.DataFrame,
    measurements: pl.DataFrame,
    *,
    dtypes: dict[str, torch.dtype] | None = None,
) -> None:
    """Save a trained model and its tables in `checkpoints.product`; every process has to call it.

    Args:
        checkpoints: of the training.
        model: trained; parameters may be spread over processes.
        tokenizer: the model's.
        metrics, measurements: as `loop.train` gives them.
        dtypes: of the parameters as they are to be saved; None: as they are.
    """
    wholes: dict[Tensor, Tensor] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            wholes[parameter] = whole(parameter).cpu()
        elif dtypes:
            parameter.data = parameter.data.to(dtypes[name])
    if PartialState().is_main_process:
        # Shared parameters stay shared.
        tensors = model.state_dict(keep_vars=True)
        state = {name: wholes.get(tensor, tensor).detach() for name, tensor in tensors.items()}
        save_model(model, tokenizer, checkpoints.product, state)
        write_tables(checkpoints, metrics, measurements)


def write_tables(
    checkpoints: Checkpoints, metrics: pl.DataFrame, measurements: pl.DataFrame
) -> None:
    """Write the tables of `loop.train` beside what was trained, in `checkpoints.product`."""
    for name, table in (("metrics", metrics), ("measurements", measurements)):
        try:
            table.write_parquet(checkpoints.product / f"{name}.parquet")
        except (OSError, PolarsError) as error:
            raise ValueError(f"{checkpoints.product}: cannot be written ({error})") from None


def _checkpoints(job: dict[str, Any]) -> Checkpoints:
    recipe = job["recipe"]
    return Checkpoints(
        job["folder"],
        job["fingerprint"],
        every=recipe["checkpoint_every"],
        keep=recipe["keep_checkpoints"],
    )


def _train(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    recipe = getattr(training, job["recipe_type"]).model_validate(job["recipe"])
    checkpoints, found = _checkpoints(job), PartialState().num_processes
    file = job["recipe"].get("accelerate_config")
    if found != recipe.processes:
        raise ValueError(
            f"processes: {recipe.processes} were asked for and {found} started"
            + ("; by accelerate_config? On CPUs leave it out" if file else "")
        )
    arguments = job["arguments"]
    if job["validation"] is not None:
        name, made_with = job["validation"]
        arguments = {**arguments, "validate": _named(name)(**made_with)}
    with checkpoints.locked() if PartialState().is_main_process else nullcontext():
        _named(job["train"])(recipe, checkpoints, **arguments)


def _named(name: str) -> Callable[..., Any]:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def _start(job: dict[str, Any], recipe: TrainingLoop) -> None:
    launcher, file = [], job["recipe"].get("accelerate_config")
    if file is not None:
        launcher = ["accelerate.commands.launch", f"--config_file={file}"]
        launcher.append(f"--num_processes={recipe.processes}")
    run_processes(__name__, job, job["folder"], recipe.processes, launcher)


def main() -> None:
    """One of the processes of a job."""
    exit_with_parent()
    path = Path(sys.argv[1])
    # Without `cpu`, accelerate would take each process on CPUs for one alone.
    main_process = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    log_to_parent(main_process)
    try:
        _train(json.loads(path.read_text()))
    except (ValueError, OSError) as error:
        error_file(path).write_text(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
