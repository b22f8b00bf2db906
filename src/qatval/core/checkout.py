"""The checkout that this qatval is run from, and what lies in it.

Presets name checkpoints and datasets relative to the repository's root (``models/...``,
``datasets/...``); they are found from any folder.
"""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def checkout() -> Path | None:
    """Return the repository's root, None for a qatval that was installed as a wheel."""
    root = Path(__file__).resolve().parents[3]
    ours = (root / "src" / "qatval" / "core").is_dir() and (root / "pyproject.toml").is_file()
    return root if ours else None


def located(path: Path) -> Path:
    """Return where what a preset names lies, or belongs: in the checkout, wherever we started.

    What lies below the current folder comes first. In the checkout's root, and without a
    checkout, the path stays as it is.
    """
    root = checkout()
    if root is None or path.exists() or Path.cwd() == root:
        return path
    return root / path
