"""From the weights that a run delivered to a file that a runtime takes."""

from __future__ import annotations

import importlib.util

from qatval.core.errors import QatvalError


def require_installed() -> None:
    """Refuse to begin where packages of the extra are missing, without loading any.

    Raises:
        QatvalError: It says how to install them.
    """
    packages = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise QatvalError(
            f"an export needs {' and '.join(missing)}, which cannot be imported: "
            "pip install 'qatval[export]'"
        )
