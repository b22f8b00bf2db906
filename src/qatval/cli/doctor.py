"""`qatval doctor`: what this machine has for a run, piece by piece, what to do about the rest."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import io
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from qatval.cli.options import add_shared
from qatval.core.environment import settings_folder
from qatval.core.errors import QatvalError
from qatval.core.files import why_unwritable
from qatval.core.formatting import terminal_line
from qatval.core.presets import validated_variants, variant

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

LOW_DISK_BYTES = 5e9
COCO_IMAGES = {"train": 118_287, "val": 5_000}

# Imported, not only looked up: a wheel for another machine fails when it is loaded.
_NEEDED_MODULES = {
    "torch": "torch",
    "ultralytics": "qatval.train",
    "brevitas": "brevitas",
    "pycocotools": "pycocotools.mask",
    "opencv-python": "cv2",
    "msgspec": "msgspec",
}

_MARKS = {"ok": "ok", "optional": "--", "missing": "NO"}

Level = Literal["ok", "optional", "missing"]
"""``"missing"`` if not even a CPU run on the embedded data is possible without what was looked at,
``"optional"`` if only other runs need it."""


class Finding(NamedTuple):
    """What was found of one piece, or what to do."""

    level: Level
    message: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval doctor` to the command line."""
    parser = subparsers.add_parser("doctor", help="say what this machine has and what it lacks")
    add_shared(parser, "--coco-root", "--cache-dir")
    parser.set_defaults(handler=report)


def report(args: argparse.Namespace) -> int:
    """Print one line for each piece; exit code 0 if the embedded data can be run on the CPU."""
    levels = set()
    for subject, finding in examine(args.coco_root, args.cache_dir):
        line = f"{_MARKS[finding.level]}  {subject:14} {finding.message}"
        print(terminal_line(line), flush=True)
        levels.add(finding.level)
    if "missing" in levels:
        print("A run is not possible yet: see the lines marked NO.")
        return 1
    print("A CPU run on the embedded data is possible.")
    return 0


def examine(coco_root: Path, cache_dir: Path | None = None) -> Iterator[tuple[str, Finding]]:
    """Look at every piece in turn; a check that fails becomes a finding, never an exception."""
    checks: dict[str, Callable[[], Finding]] = {
        "Python": _python,
        "settings": _settings,  # before Ultralytics is loaded with those it gets
        **{package: partial(_package, package) for package in _NEEDED_MODULES},
        "GPU": _gpu,
        "embedded": _embedded_checkpoints,
        "COCO": partial(_coco, coco_root),
        **{name: partial(_checkpoint, name) for name in validated_variants()},
        "cache": partial(_cache, cache_dir),
        "disk": _disk,
    }
    for subject, check in checks.items():
        try:
            yield subject, check()
        except QatvalError as error:
            yield subject, Finding("missing", str(error))
        except Exception as error:
            yield subject, Finding("missing", f"could not be examined: {error!r}")


def _python() -> Finding:
    message = f"{platform.python_version()}, {os.cpu_count()} CPU cores"
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        remedy = "set PYTHONUTF8=1, or a locale with UTF-8, to reach all others"
        return Finding("optional", f"{message}; takes file names for {encoding}: {remedy}")
    return Finding("ok", message)


def _package(package: str) -> Finding:
    try:
        version = importlib.metadata.version(package)
        # Some announce themselves when they are first imported.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            importlib.import_module(_NEEDED_MODULES[package])
    except Exception as error:
        return Finding("missing", f"{error!r}; 'make setup' installs it")
    tested = _tested_versions(package)
    if tested is None:
        return Finding("ok", version)
    if not tested.contains(version, prereleases=True):
        return Finding("optional", f"{version} is untested; tested: {tested}")
    return Finding("ok", f"{version} (tested: {tested})")


def _tested_versions(package: str) -> SpecifierSet | None:
    """Return the versions that qatval itself requires, where that can be found out."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in importlib.metadata.requires("qatval") or ()]
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return None
    return next((item.specifier for item in requirements if item.name == package), None)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        reason = "no GPU" if torch.version.cuda else "torch is built without CUDA"
        return Finding("optional", f"{reason}: run with --device cpu, or on a machine with CUDA")
    devices = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices.append(f"{index}: {name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    return Finding("ok", f"CUDA {torch.version.cuda}, driver {_driver()}; {'; '.join(devices)}")


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split("\n", 1)[0].split() if path.is_file() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def _coco(coco_root: Path) -> Finding:
    from qatval.data.coco import coco_files
    from qatval.data.shapes import read_manifest

    try:
        files = coco_files(coco_root)
    except QatvalError as error:
        return Finding("optional", str(error))
    manifest = read_manifest(coco_root)
    counts = []
    for split, folder in ((split, of_split.image_dir) for split, of_split in files.items()):
        with os.scandir(folder) as listing:
            found = sum(item.name.endswith(".jpg") for item in listing)
        expected = manifest[f"{split}_images"] if manifest else COCO_IMAGES[split]
        if found < expected:
            remedy = f"unpack {folder.name}.zip there completely"
            return Finding("optional", f"{folder}: {found} of {expected} images; {remedy}")
        counts.append(f"{found} {split}")
    name = "the embedded dataset" if manifest else "COCO 2017"
    return Finding("ok", f"{coco_root}: {name}, {' and '.join(counts)} images")


def _embedded_checkpoints() -> Finding:
    paths = [path for name in validated_variants() if (path := variant(name).embedded_checkpoint)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        remedy = "it comes with the repository: run qatval from a clone, or restore it"
        return Finding("missing", f"{missing[0]} is missing; {remedy}")
    return Finding("ok", ", ".join(map(str, paths)))


def _checkpoint(name: str) -> Finding:
    path = variant(name).checkpoint
    if not path.is_file():
        return Finding("optional", f"{path} is missing; 'qatval checkpoints fetch {name}' gets it")
    return Finding("ok", f"{path}, {path.stat().st_size / 1e6:.1f} MB")


def _cache(cache_dir: Path | None) -> Finding:
    from qatval.data.cache import ENVIRONMENT_VARIABLE, Cache

    cache = Cache(cache_dir)
    if refused := why_unwritable(cache.directory):
        remedy = f"name another with --cache-dir or {ENVIRONMENT_VARIABLE}"
        return Finding("missing", f"{cache.directory} cannot be written ({refused}); {remedy}")
    return Finding("ok", f"{cache.directory}, {len(cache.entries())} entries")


def _settings() -> Finding:
    folder, refused = settings_folder()
    if refused:
        remedy = "a temporary folder takes its place, or name another with YOLO_CONFIG_DIR"
        what = f"{folder} cannot be written ({refused})" if folder else refused
        return Finding("optional", f"{what}; {remedy}")
    return Finding("ok", f"{folder}, of Ultralytics")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    message = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    if free < LOW_DISK_BYTES:
        return Finding("optional", f"{message}; long runs want {LOW_DISK_BYTES / 1e9:.0f}")
    return Finding("ok", message)
