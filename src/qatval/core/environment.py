"""Where a run took place: source revision, versions, machine."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from qatval.core.checkout import checkout
from qatval.core.files import why_unwritable

_PACKAGES = (
    "qatval",
    "torch",
    "torchvision",
    "ultralytics",
    "brevitas",
    "pycocotools",
    "numpy",
    "opencv-python",
)

MOST_PIXELS = 2**27
"""Of an image that is decoded, 11,585 px squared: 400 MB, and twice that where it is turned."""

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def git_state() -> dict[str, Any]:
    """Return commit, branch and dirtiness of qatval's own checkout, each None outside of one.

    Never those of another repository: one around a clone without ``.git``, around an environment
    that qatval is installed in, or one that a git hook names in ``GIT_DIR``.
    """
    unknown: dict[str, Any] = {"commit": None, "branch": None, "dirty": None}
    root = checkout()
    if root is None:
        return unknown
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(root.parent)
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        status = subprocess.run(
            command,
            cwd=root,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return unknown
    header = {
        key: value
        for line in status
        if line.startswith("# branch.")
        for key, _, value in [line.removeprefix("# branch.").partition(" ")]
    }
    commit = header.get("oid")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": header.get("head"),
        "dirty": any(not line.startswith("#") for line in status),
    }


def user_folder(kind: Literal["cache", "config"]) -> Path | None:
    """Return the user's folder for qatval's files of a kind, None where there is no home folder."""
    import platformdirs

    find = {"cache": platformdirs.user_cache_path, "config": platformdirs.user_config_path}[kind]
    try:
        found = find("qatval", appauthor=False)
    except RuntimeError:
        return None
    return found if found.is_absolute() else None  # older releases leave the "~" in


def settings_folder() -> tuple[Path | None, str | None]:
    """Return the folder of Ultralytics' settings, and why they cannot be kept there, if so.

    ``$YOLO_CONFIG_DIR``, else qatval's own below the user's configuration.
    """
    named = os.environ.get("YOLO_CONFIG_DIR")
    folder = Path(named).absolute() if named else user_folder("config")
    if folder is None:
        return None, "there is no home folder"
    return folder, why_unwritable(folder)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that results depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """Return the system, the processor and how many cores this process may use."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": available_cores(),
    }


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_resident_mb() -> int | None:
    """Return the most memory in MiB that this process has had, or None where nobody can tell."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)


def prepare_process() -> None:
    """Settle how this process's threads wait, what it does with freed memory, what it decodes.

    Call it before torch or OpenCV are imported. None changes a result, and what the user has
    settled in the environment is left alone.
    """
    _limit_spinning()
    _keep_freed_memory()
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))  # trainings decode, too


def _limit_spinning() -> None:
    """Let torch's waiting threads sleep soon.

    After every operation the threads of libgomp wait
    for each other, and spin for up to 300,000 rounds before they sleep. Where a core is shared,
    the thread that is waited for is often not running, and spinning keeps it from its core.
    Measured on 2 cores, a training step of yolo10n at 128 px, by default and with 5,000 rounds:
    alone 210 and 216 ms (382 ms with none); beside another training at worst 16.8 and 1.4 s;
    beside a process of one busy thread 0.6 and 0.9 s, the case that gets slower.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed instead of giving it back to the system.

    A training step on a CPU frees hundreds of megabytes and asks for them again in the next one;
    given back in between, every page is mapped and zeroed anew. A step of yolo10n (160 px, batch
    16) takes 5 % less time without that, and the peak memory is the same. Does nothing where the
    C library is another one.
    """
    settled = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or settled:
        return
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that every version takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
