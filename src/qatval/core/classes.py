"""A dataset's classes held to a checkpoint's, by their names.

Class indices say nothing: whoever exports a dataset numbers its categories anew. A head whose rows
stand in another order than the labels scores close to zero and looks like a collapse.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from qatval.core.errors import QatvalError, quoted

# What tools write where nobody named the classes: "0", "class0", "class_7", "Category 3".
_PLACEHOLDER = re.compile(r"(?:class|cls|category|label|object|item)?[\s_-]*\d+", re.IGNORECASE)

_SHOWN = 3


@dataclass(frozen=True)
class ClassMatch:
    """How a dataset's classes were found in a checkpoint.

    Attributes:
        kind: ``"same"`` order; ``"mapped"`` from another one; ``"unknown"``: one of the two has no
            names, so the indices are taken as they are.
        rows: By the dataset's class index, the class's index in the checkpoint.
        renamed: The dataset's name -> the checkpoint's, where they are written differently.
        said: The same in a sentence, empty where there is nothing to say.
    """

    kind: Literal["same", "mapped", "unknown"]
    rows: tuple[int, ...]
    renamed: dict[str, str]
    said: str


def match_classes(dataset: Sequence[str], checkpoint: Sequence[str] | None) -> ClassMatch:
    """Find a dataset's classes in a checkpoint.

    Names that differ in nothing but case, spaces, underscores and hyphens are taken for the same,
    where that leaves all names of each side distinct: exporters and file formats change these, and
    no list of classes in use tells two of its own apart by them. Synonyms ("tv", "tvmonitor") are
    not guessed.

    Args:
        dataset: Names by class index.
        checkpoint: Names by class index, as many, None where the checkpoint has none.

    Raises:
        QatvalError: If the names are others; the message, to be put behind the checkpoint's path,
            shows the first that differ.
    """
    same = tuple(range(len(dataset)))
    if checkpoint is None:
        return ClassMatch("unknown", same, {}, _unknown("the checkpoint names no classes"))
    if list(dataset) == list(checkpoint):
        return ClassMatch("same", same, {}, "")
    for written in (str, _plain):
        rows = _rows(dataset, checkpoint, written)
        if rows is not None:
            return _matched(dataset, checkpoint, rows)
    for names, whose in ((checkpoint, "the checkpoint's"), (dataset, "the dataset's")):
        if all(_PLACEHOLDER.fullmatch(name.strip()) for name in names):
            reason = f"{whose} class names are placeholders such as {quoted(names[0])}"
            return ClassMatch("unknown", same, {}, _unknown(reason))
    raise QatvalError(_difference(dataset, checkpoint))


def _rows(
    dataset: Sequence[str], checkpoint: Sequence[str], written: Callable[[str], str]
) -> tuple[int, ...] | None:
    ours = [written(name) for name in dataset]
    theirs = {written(name): row for row, name in enumerate(checkpoint)}
    if len(set(ours)) < len(ours) or len(theirs) < len(checkpoint) or set(ours) != set(theirs):
        return None
    return tuple(theirs[name] for name in ours)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def _matched(
    dataset: Sequence[str], checkpoint: Sequence[str], rows: tuple[int, ...]
) -> ClassMatch:
    pairs = [(name, checkpoint[row]) for name, row in zip(dataset, rows, strict=True)]
    renamed = {name: theirs for name, theirs in pairs if name != theirs}
    moved = sum(row != index for index, row in enumerate(rows))
    said = []
    if moved:
        said.append(
            f"the dataset lists its {len(rows)} classes in another order than the checkpoint: "
            f"{moved} are mapped by name"
        )
    if renamed:
        shown = [f"{quoted(name)} for {quoted(theirs)}" for name, theirs in renamed.items()]
        said.append(f"class names are taken for the same: {_first(shown)}")
    return ClassMatch("mapped" if moved else "same", rows, renamed, "; ".join(said))


def _unknown(reason: str) -> str:
    return f"{reason}: whether its classes are the dataset's, in this order, could not be compared"


def _difference(dataset: Sequence[str], checkpoint: Sequence[str]) -> str:
    for names, whose in ((dataset, "the dataset"), (checkpoint, "the checkpoint")):
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            return (
                f"its classes cannot be told from the dataset's: {whose} has {count} named "
                f"{quoted(name)}; name every class once"
            )
    known = {_plain(name) for name in dataset}, {_plain(name) for name in checkpoint}
    ours = [quoted(name) for name in dataset if _plain(name) not in known[1]]
    theirs = [quoted(name) for name in checkpoint if _plain(name) not in known[0]]
    if not ours:  # different only as lists of plain names
        ours, theirs = list(map(quoted, dataset)), list(map(quoted, checkpoint))
    return (
        f"detects other classes: only the dataset has {_first(ours)}, only the checkpoint has "
        f"{_first(theirs)}; give a checkpoint of these classes, or name the dataset's categories "
        "as the checkpoint does if they are the same things"
    )


def _first(shown: Sequence[str]) -> str:
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
