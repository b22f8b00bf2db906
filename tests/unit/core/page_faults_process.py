"""Prints how many pages are mapped anew while blocks of 1 MiB are freed over and over.

Arguments: how many blocks, and how often.
"""

from __future__ import annotations

import resource
import sys

from qatval.core.environment import prepare_process


def main(blocks: int, turns: int) -> None:
    def fill() -> list[bytes]:
        return [b"x" * 2**20 for _ in range(blocks)]

    prepare_process()
    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        fill()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
