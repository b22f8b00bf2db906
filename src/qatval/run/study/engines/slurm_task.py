"""What a task of Slurm's runs on its node: the process of an attempt."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

from qatval.run.study.engines import Attempt, process


@dataclass
class Command:
    """What a task calls: the process of an attempt, which is told to save when the task has to go.

    Attributes:
        attempt: What it starts.
        patience_s: Seconds that the process has to save what it has.
    """

    attempt: Attempt
    patience_s: float

    def __call__(self) -> NoReturn:
        """Run it and end with its exit code, by which Slurm then knows the task."""
        # Slurm sends the signal by which it announces a task's end to all of its processes, and
        # it kills those that do not know it. What is blocked here is blocked in what is started.
        announcing = {signal.SIGUSR1, signal.SIGUSR2}
        signal.pthread_sigmask(signal.SIG_BLOCK, announcing)
        try:
            self._process = process.start(self.attempt, own_session=False)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, announcing)
        # Not Popen.wait, which `checkpoint` could not ask meanwhile: that holds a lock.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        signal.pthread_sigmask(signal.SIG_BLOCK, announcing)  # nothing is left to be saved
        code = self._process.wait()
        sys.exit(code if code >= 0 else 128 - code)

    def checkpoint(self) -> Any:
        """Have the process save what it has and end, and say what to call when the task is back.

        submitit calls this where Slurm's signal has interrupted the call, and requeues the task.
        """
        from submitit.helpers import DelayedSubmission

        process.ask_to_end(self._process)
        process.wait(self._process, self.patience_s, poll_s=0.1)
        return DelayedSubmission(Command(self.attempt, self.patience_s))
