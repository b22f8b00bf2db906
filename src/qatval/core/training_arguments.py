"""Those of Ultralytics' training arguments that a study may set: how a detector is trained.

The others are qatval's own to settle (where files go, what is validated), have keys of their own
(``epochs``, ``batch``), or play no part in training a detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qatval.core.errors import UsageError
from qatval.core.formatting import nearest

_SHARES = (
    *("lr0", "lrf", "momentum", "weight_decay", "warmup_momentum", "warmup_bias_lr", "cls_pw"),
    *("hsv_h", "hsv_s", "hsv_v", "translate", "perspective", "flipud", "fliplr", "bgr"),
    *("mosaic", "mixup", "cutmix", "copy_paste", "multi_scale", "scale"),
)
_NUMBERS = ("warmup_epochs", "box", "cls", "dfl", "degrees", "shear")
_INTEGERS = ("nbs", "close_mosaic")
_SWITCHES = ("cos_lr",)
_CHOICES = {
    "optimizer": ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp", "auto"),
    "copy_paste_mode": ("flip", "mixup"),
}

EXPECTED: Mapping[str, str] = {
    **dict.fromkeys(_SHARES, "a number in 0..1"),
    **dict.fromkeys(_NUMBERS, "a number of at least 0"),
    **dict.fromkeys(_INTEGERS, "an integer of at least 0"),
    **dict.fromkeys(_SWITCHES, "true or false"),
    **{name: f"one of {', '.join(choices)}" for name, choices in _CHOICES.items()},
}
"""What each takes."""


def refuse_unfit(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that do not exist, or that Ultralytics would not take.

    Raises:
        UsageError: It names the first of them, what was expected and what came.
    """
    for name, value in arguments.items():
        if name not in EXPECTED:
            raise UsageError(
                f"{name}: no training argument that can be set{nearest(name, EXPECTED)}"
            )
        if not _fits(name, value):
            raise UsageError(f"{name}: expected {EXPECTED[name]}, got {value!r:.80}")


def _fits(name: str, value: Any) -> bool:
    if name in _SWITCHES:
        return isinstance(value, bool)
    if name in _CHOICES:
        return value in _CHOICES[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if name in _INTEGERS:
        return isinstance(value, int) and value >= (name == "nbs")
    return 0 <= value <= (1 if name in _SHARES else float("inf"))
