"""What a run keeps until all of its methods are delivered: ``.training/`` in the run root given.

::

    configuration.json    what was asked for and found, the names of the trainings and the runs
    <name>/               work directory of a training, see `qatval.train.trainer.train`
    *.safetensors         the models that trainings start from

By it the same command goes on where an earlier one was interrupted, whatever ended that.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from qatval.core.errors import QatvalError
from qatval.core.files import atomic_write

_NAME = ".training"
_LEAVINGS = ".training-*"  # of versions that kept nothing, and of a removal that was killed

Identity = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class Named(msgspec.Struct, frozen=True):
    """What identifies a run, however often it is interrupted."""

    run_id: str
    created_at: str


class _Configuration(msgspec.Struct):
    trainings: list[Identity] = []
    runs: dict[str, Named] = {}
    settings: dict[str, Any] = {}


def is_interrupted(run_root: Path) -> bool:
    """Whether a run root holds what a run needs to go on: it was interrupted, or is running."""
    return (run_root / _NAME).exists()


class Workspace:
    """The work folder of a run root that this process has claimed.

    Attributes:
        directory: The folder.
        runs: By method what the run's summary is called.
    """

    def __init__(self, run_root: Path, *, anew: bool = False) -> None:
        """Take up what an interrupted run left, if one did, and nothing of it to begin ``anew``.

        Raises:
            QatvalError: If it cannot be read.
        """
        self._run_root = run_root
        self.directory = run_root / _NAME
        self._file = self.directory / "configuration.json"
        self._configuration = _Configuration() if anew else self._read()

    def _read(self) -> _Configuration:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Configuration)
        except FileNotFoundError:
            return _Configuration()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise QatvalError(
                f"{self._file} cannot be read ({error}): the interrupted run cannot go on, begin "
                "it anew with --restart"
            ) from error

    @property
    def runs(self) -> Mapping[str, Named]:
        """By method what identifies its run; empty where there is nothing to go on with."""
        return self._configuration.runs

    @property
    def trained(self) -> bool:
        """Whether anything of a training is kept that would have to be done again."""
        kept = ("state.safetensors", "trajectory.json")
        directories = map(self.training, range(len(self._configuration.trainings)))
        return any((directory / name).exists() for directory in directories for name in kept)

    def begin(self, trainings: int, runs: Mapping[str, Named]) -> None:
        """Begin a run: remove what an earlier one left, name its trainings.

        Raises:
            QatvalError: If the folder cannot be written to.
        """
        self.remove()
        names = [uuid.uuid4().hex for _ in range(trainings)]
        self._configuration = _Configuration(names, dict(runs))
        self._write()

    def hold(self, settings: Mapping[str, Any]) -> None:
        """Record settings that results depend on, or hold them to those that are recorded.

        Raises:
            QatvalError: If one differs from what the interrupted run had, naming it.
        """
        recorded, found = self._configuration.settings, flat(settings)
        if other := difference(recorded, found):
            raise QatvalError(
                f"{self._run_root} holds an interrupted run with another {other}; give the same "
                "command again to go on, or --restart to begin anew"
            )
        self._configuration.settings = recorded | found
        self._write()

    def training(self, number: int) -> Path:
        """Return the work directory of one of the run's trainings; its name identifies it."""
        return self.directory / self._configuration.trainings[number]

    def remove(self) -> None:
        """Remove all of it, at once for whoever looks."""
        self._configuration = _Configuration()
        if self.directory.exists():
            self.directory.replace(self.directory.with_name(f"{_NAME}-{uuid.uuid4().hex}"))
        for leavings in self._run_root.glob(_LEAVINGS):
            shutil.rmtree(leavings, ignore_errors=True)

    def _write(self) -> None:
        content = msgspec.json.encode(self._configuration)
        atomic_write(self._file, msgspec.json.format(content, indent=2))


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted names, as they are read back from JSON: tuples are lists there."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(dict(_flat(settings))))
    return found


def difference(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Name the first of `flat` settings that is not as it was recorded, None if none is."""
    for name, value in found.items():
        if name in recorded and recorded[name] != value:
            return f"{name}: it was {_shown(recorded[name])}, is {_shown(value)}"
    return None


def _flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}..."
