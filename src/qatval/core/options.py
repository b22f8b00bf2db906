"""Checks of option values that several commands share."""

from __future__ import annotations

import argparse


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
    """Parse distinct seeds with commas between them."""
    parsed = tuple(seed(part) for part in text.split(","))
    if len(set(parsed)) != len(parsed):
        raise argparse.ArgumentTypeError(f"a seed is given twice: {text}")
    return parsed


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got '{text}'") from None
