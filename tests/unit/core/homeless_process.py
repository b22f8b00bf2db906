"""Imports qatval.train with each of some home folders; prints what became of the settings.

Arguments: the homes, "-" for none. Each import is in a fork of this process, which has loaded torch
for all of them. A line of JSON for each home: the settings' folder and the files in it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import platformdirs
import torch  # noqa: F401


def main(home: str) -> None:
    os.environ["HOME"] = "/" if home == "-" else home
    if home == "-":
        platformdirs.user_config_path = lambda *_, **__: Path("~/x")
    import qatval.train  # noqa: F401

    folder = Path(os.environ["YOLO_CONFIG_DIR"])
    print(json.dumps([str(folder), *map(str, folder.rglob("*.json"))]), flush=True)


if __name__ == "__main__":
    gc.freeze()  # what is imported stays shared
    for home in sys.argv[1:]:
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            assert status == 0, home
        else:
            main(home)
            sys.exit()
