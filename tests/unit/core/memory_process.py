"""Takes memory and gives it back; prints what that was.

``faults BLOCKS TURNS``: how many pages are mapped anew while so many blocks of 1 MiB are freed so
often. ``peak MIB``: the process's peak in MiB before and after it had that much for a moment.
"""

from __future__ import annotations

import resource
import sys

from qatval.core.environment import peak_resident_mb, prepare_process

MIB = 2**20


def faults(blocks: int, turns: int) -> list[int | None]:
    def fill() -> list[bytes]:
        return [b"x" * MIB for _ in range(blocks)]

    prepare_process()
    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        fill()
    return [resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]


def peak(mib: int) -> list[int | None]:
    before = peak_resident_mb()
    taken = bytearray(mib * MIB)
    taken[::4096] = b"x" * len(taken[::4096])
    del taken
    return [before, peak_resident_mb()]


if __name__ == "__main__":
    measure = {"faults": faults, "peak": peak}[sys.argv[1]]
    print(*measure(*map(int, sys.argv[2:])))
