"""One of two processes that train together on the CPU, as each GPU's process would.

Arguments: a file with the trainer's overrides, and the batch of the second epoch after which the
second process gets a signal, or -1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from qatval.train.trainer import QatTrainer


class OnCpu(nn.parallel.DistributedDataParallel):
    """Takes no device ids, which belong to GPUs."""

    def __init__(self, module: nn.Module, device_ids: Any = None, **settings: Any) -> None:
        super().__init__(module, **settings)


class Rank(QatTrainer):
    """Ultralytics trains in several processes on GPUs only."""

    def __init__(self, overrides: dict[str, Any], signalled: int) -> None:
        super().__init__(overrides=overrides)
        self.world_size, self.signalled = 2, signalled

    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo")

    def optimizer_step(self) -> None:
        super().optimizer_step()
        if dist.get_rank() == 1 and (self.epoch, self.done) == (1, self.signalled):
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    nn.parallel.DistributedDataParallel = OnCpu  # type: ignore[misc, assignment]
    torch.set_num_threads(1)
    Rank(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])).train()
