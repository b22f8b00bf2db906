"""Types of option values that commands and the pytest plugin share."""

from __future__ import annotations

import argparse
import math

MOST_SEEDS = 1000


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def bits(text: str) -> int:
    """Parse the bits of a quantized number, an integer in 2..8."""
    value = _integer(text)
    if not 2 <= value <= 8:
        raise argparse.ArgumentTypeError(f"expected an integer in 2..8, got {text}")
    return value


def activation_bits(text: str) -> int | None:
    """Parse the bits of an activation: 2..8, or 16 for None: it stays in float."""
    value = _integer(text)
    if value != 16 and not 2 <= value <= 8:
        raise argparse.ArgumentTypeError(
            f"expected an integer in 2..8, or 16 for float, got {text}"
        )
    return value if value < 16 else None


def seed(text: str) -> int:
    """Parse a seed, an integer in 0..2147483647."""
    value = _integer(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected an integer in 0..2147483647, got {text}")
    return value


def seeds(text: str) -> tuple[int, ...]:
    """Parse distinct seeds: ``0,1,2`` with commas between them, ``0..9`` from one to another."""
    parsed: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        low = seed(first)
        high = seed(last) if dots else low
        if high < low or high - low >= MOST_SEEDS or len(parsed) >= MOST_SEEDS:
            raise argparse.ArgumentTypeError(
                f"expected seeds such as 0,1,2 or 0..9, at most {MOST_SEEDS}, got {text}"
            )
        parsed += range(low, high + 1)
    if len(set(parsed)) != len(parsed):
        raise argparse.ArgumentTypeError(f"a seed is given twice: {text}")
    return tuple(parsed)


def contrast(text: str) -> tuple[str, str]:
    """Parse two names with a colon between them: method and reference."""
    method, _, reference = text.partition(":")
    if not method or not reference or ":" in reference:
        raise argparse.ArgumentTypeError(
            f"expected METHOD:REFERENCE, e.g. ema+qc:baseline, got '{text}'"
        )
    return method, reference


def margin(text: str) -> float:
    """Parse a difference of mAP, above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"expected a difference of mAP above 0 and below 1, e.g. 0.005, got '{text}'"
        )
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got '{text}'") from None
