"""What submitit is told of each task: by a study's ``[resources]`` and its ``[slurm]``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from qatval.core.errors import QatvalError
from qatval.run.study.engines import Resources

LARGEST_ARRAY = 1000
"""Tasks of an array, where Slurm takes as many; its own default is 1001."""
# Results, signals and the number of processes hang on these.
_SETTLED = {"time", "nodes", "ntasks_per_node", "num_gpus", "stderr_to_stdout", "use_srun"}


class _Parameters(msgspec.Struct):
    """Those of submitit's parameters that are no plain options of ``sbatch``."""

    setup: list[str] = []
    teardown: list[str] = []
    srun_args: list[str] = []
    additional_parameters: dict[str, str | int | float | bool] = {}
    signal_delay_s: int = 90  # from the signal to the end of what Slurm ends
    array_parallelism: int = LARGEST_ARRAY


def settled(resources: Resources, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what submitit's ``AutoExecutor`` is told.

    Raises:
        QatvalError: If submitit is missing, a parameter is wrong, or there is no time limit.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise QatvalError(
            "jobs go to Slurm through submitit, which is not installed: pip install 'qatval[slurm]'"
        ) from error
    known = submitit.SlurmExecutor._valid_parameters() - _SETTLED
    if unknown := sorted(parameters.keys() - known):
        raise QatvalError(
            f"[slurm] takes no {unknown[0]!r}: time and processes are settled by [resources], the "
            f"rest are {', '.join(sorted(known))}"
        )
    try:
        given = msgspec.convert(dict(parameters), _Parameters)
    except msgspec.ValidationError as error:
        raise QatvalError(f"[slurm]: {error}") from error
    if resources.minutes is None:
        raise QatvalError(
            "[resources] names no minutes: say after how long Slurm may end an attempt; the next "
            "one goes on from there"
        )
    gpus = math.ceil(resources.gpus) if "gres" not in parameters else 0
    told = {
        "name": "qatval",
        "timeout_min": resources.minutes,
        "cpus_per_task": resources.threads,
        "mem_gb": resources.memory_gb,
        "gpus_per_node": gpus or None,
        "stderr_to_stdout": True,
        **{f"slurm_{name}": value for name, value in parameters.items()},
        "slurm_signal_delay_s": given.signal_delay_s,
        "slurm_array_parallelism": given.array_parallelism,
        # Since 22.05 a step has one processor of the task's, unless it asks for them as well.
        "slurm_srun_args": [
            "--open-mode=append",  # a requeued task goes on with its logs
            f"--cpus-per-task={parameters.get('cpus_per_task', resources.threads)}",
            *given.srun_args,
        ],
        "slurm_additional_parameters": {
            "requeue": True,  # whatever the cluster's JobRequeue is
            **given.additional_parameters,
        },
    }
    return {name: value for name, value in told.items() if value is not None}
