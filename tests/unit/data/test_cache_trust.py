"""The cache against others: what is altered is not used, what is used is not removed."""

from __future__ import annotations

import argparse
import errno
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qatval.cli import cache as cache_command
from qatval.core import locks
from qatval.core.errors import QatvalError
from qatval.core.locks import Use, exclusive, unused
from qatval.data import cache as cache_module
from qatval.data import ownership
from qatval.data.cache import Cache, DamagedError, load_index, save_index
from qatval.data.subset import Subset, build_subset, open_subset

Build = Callable[..., Subset]


@pytest.fixture
def build(write_coco: Any, cache_dir: Path) -> Build:
    root = write_coco()

    def build(**options: Any) -> Subset:
        settings: dict[str, Any] = {"train_images": 10, "val_images": 5, "seed": 0}
        return build_subset(root, cache_dir=cache_dir, **settings | options)

    return build


def command(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="qatval")
    cache_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["cache", *map(str, words)])
    code: int = args.handler(args)
    return code


# -- digests -----------------------------------------------------------------------------------


def index_of(cache: Path, split: str, known: dict[str, Any]) -> Path:
    """Return the index of a split."""
    digest = next(f["sha256"] for name, f in known["files"].items() if split in name)
    return next((cache / "indexes").glob(f"{digest}*"))


def poison_index(cache: Path, entry: Path, known: dict[str, Any]) -> None:
    """Move every box, in qatval's own words: the file's own checksums are right."""
    path = index_of(cache, "train", known)
    index = load_index(path)
    index.boxes[:, 0] += 1
    save_index(index, path)


def swap_indexes(cache: Path, entry: Path, known: dict[str, Any]) -> None:
    train, val = (index_of(cache, split, known) for split in ("train", "val"))
    content = train.read_bytes()
    train.write_bytes(val.read_bytes())
    val.write_bytes(content)


def poison_labels(cache: Path, entry: Path, known: dict[str, Any]) -> None:
    with np.load(entry / "train.npz") as archive:
        arrays = {**archive, "classes": archive["classes"][::-1]}
    np.savez(entry / "train.npz", **arrays)


def rename_classes(cache: Path, entry: Path, known: dict[str, Any]) -> None:
    record = json.loads((entry / "subset.json").read_text())
    record["class_names"].reverse()
    (entry / "subset.json").write_text(json.dumps(record))


def swap_entries(cache: Path, entry: Path, known: dict[str, Any]) -> None:
    other = next(path for path in entry.parent.iterdir() if path != entry)
    entry.rename(cache / "meanwhile")
    other.rename(entry)
    (cache / "meanwhile").rename(other)


def drop_digest(cache: Path, entry: Path, known: dict[str, Any]) -> None:
    """As a former qatval wrote entries."""
    record = json.loads((entry / "subset.json").read_text())
    del record["sha256"]
    (entry / "subset.json").write_text(json.dumps(record))


ALTERATIONS = {f.__name__: f for f in (poison_index, swap_indexes, poison_labels, rename_classes)}
ALTERATIONS |= {f.__name__: f for f in (swap_entries, drop_digest)}


@pytest.mark.parametrize("alter", ALTERATIONS.values(), ids=ALTERATIONS)
def test_what_was_altered_is_found_and_built_again(
    build: Build, cache_dir: Path, alter: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    build(seed=1)
    entry = build().directory
    gc.collect()  # nobody uses them
    whole = {path.name: path.read_bytes() for path in entry.iterdir()}
    assert command("verify", "--cache-dir", cache_dir) == 0
    capsys.readouterr()
    alter(cache_dir, entry, json.loads((cache_dir / "known.json").read_text()))
    assert command("verify", "--cache-dir", cache_dir) == 1
    assert "damaged, removed: built anew when needed" in capsys.readouterr().out
    build()
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == whole
    assert command("verify", "--cache-dir", cache_dir) == 0


@pytest.mark.parametrize("alter", [poison_labels, rename_classes, swap_entries, drop_digest])
def test_no_run_opens_what_was_altered(build: Build, cache_dir: Path, alter: Any) -> None:
    build(seed=1)
    subset = build()
    alter(cache_dir, subset.directory, {})
    with pytest.raises(DamagedError):
        open_subset(subset.directory)
    np.testing.assert_array_equal(build().train.classes, subset.train.classes)


def test_no_subset_is_made_of_an_altered_index(build: Build, cache_dir: Path) -> None:
    subset = build()
    poison_index(cache_dir, subset.directory, json.loads((cache_dir / "known.json").read_text()))
    shutil.rmtree(subset.directory)
    np.testing.assert_array_equal(build().train.boxes, subset.train.boxes)


def test_verify_reads_annotation_files_that_pass_for_unchanged(
    build: Build, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = Path(build().provenance["annotations"]["train"])
    status = annotations.stat()
    with annotations.open("r+b") as file:
        file.write(annotations.read_bytes().replace(b'"license": 3', b'"license": 4'))
    os.utime(annotations, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert command("verify", "--cache-dir", cache_dir) == 1
    assert f"{annotations}  changed behind its size and time" in capsys.readouterr().out
    assert command("verify", "--cache-dir", cache_dir) == 0
    assert Cache(cache_dir).known_digest(annotations) is None


# -- who may write ------------------------------------------------------------------------------

PRIVATE = "alice"
GROUPS = {100: ("users", ["bob"]), 1000: (PRIVATE, []), 1001: (PRIVATE, ["bob"])}


@pytest.mark.parametrize(
    ("mode", "owner", "group", "said"),
    [
        (0o755, 1000, 100, None),
        (0o700, 1000, 100, None),
        (0o755, 0, 0, None),
        (0o775, 1000, 1000, None),
        (0o775, 0, 1000, None),
        (0o775, 1000, 1001, "may be written by others, of group 1001 (drwxrwxr-x)"),
        (0o775, 1000, 100, "may be written by others, of group 100"),
        (0o2770, 1000, 31337, "may be written by others, of group 31337"),
        (0o757, 1000, 1000, "may be written by everybody (drwxr-xrwx)"),
        (0o1777, 0, 0, "may be written by everybody"),
        (0o700, 1001, 1000, "belongs to another user (uid 1001)"),
    ],
)
def test_a_folder_that_others_may_write_to_is_refused(
    monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, group: int, said: str | None
) -> None:
    import grp
    import pwd

    def group_of(gid: int) -> grp.struct_group:
        name, members = GROUPS[gid]
        return grp.struct_group((name, "x", gid, members))

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(grp, "getgrgid", group_of)
    user = pwd.struct_passwd((PRIVATE, "x", 1000, 1000, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {1000: user}.__getitem__)
    status = os.stat_result((0o040000 | mode, 1, 1, 1, owner, group, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda path: status)
    with ExitStack() as stack:
        if said is not None:
            refused = stack.enter_context(pytest.raises(QatvalError))
        ownership.refuse_foreign(Path("/cache"), remedy="do this")
    if said is not None:
        assert str(refused.value).startswith(f"/cache: {said}")
        assert str(refused.value).endswith("; do this" if owner == 1001 else ", or do this")


@pytest.mark.parametrize("folder", [".", "indexes", "subsets"])
@pytest.mark.parametrize("words", [["ls"], ["verify"], ["rm", "--all"]], ids=" ".join)
def test_every_command_refuses_it_with_one_line(
    build: Build, cache_dir: Path, folder: str, words: list[str]
) -> None:
    build()
    (cache_dir / folder).chmod(0o777)
    for use in (build, lambda: command(*words, "--cache-dir", cache_dir)):
        with pytest.raises(QatvalError, match="may be written by everybody") as caught:
            use()
        remedy = f"'chmod -R go-w {cache_dir / folder}' if you trust what is in it, or name"
        assert remedy in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_new_cache_is_not_writable_by_others_whatever_the_umask(
    build: Build, cache_dir: Path
) -> None:
    before = os.umask(0)
    try:
        build()
        assert os.umask(0) == 0  # as it was
    finally:
        os.umask(before)
    assert not [path for path in cache_dir.rglob("*") if path.stat().st_mode & 0o022]
    build()


# -- what a run uses -----------------------------------------------------------------------------


def test_rm_spares_what_is_used_and_says_by_whom(
    build: Build, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = build()
    unused_entry = build(seed=1).directory
    gc.collect()
    for words in (["--all"], [used.directory.name]):
        assert command("rm", *words, "--cache-dir", cache_dir) == 1
        told = f"kept {used.directory.name[:16]}: {used.directory}: in use by process {os.getpid()}"
        assert told in capsys.readouterr().out
    assert not unused_entry.exists()
    assert open_subset(used.directory).identity == used.identity
    entry = used.directory
    del used
    gc.collect()
    assert command("rm", "--all", "--cache-dir", cache_dir) == 0
    assert not entry.exists()


def test_verify_keeps_what_is_damaged_and_used(
    build: Build, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = build()
    rename_classes(cache_dir, used.directory, {})
    assert command("verify", "--cache-dir", cache_dir) == 1
    assert "damaged, kept: " in capsys.readouterr().out
    assert used.val_annotations.exists()
    # Whoever asks for it gets a whole one, in the place of the damaged one.
    assert build().class_names == used.class_names


HOLDING = """
import sys, time
from pathlib import Path
from qatval.core.locks import Use, exclusive
path = Path(sys.argv[2])
if sys.argv[1] == "use":
    held = Use(path)
    print("holds", flush=True)
    time.sleep(60)
with exclusive(path):
    print("holds", flush=True)
    time.sleep(60)
"""


def holder(kind: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, kind, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def test_a_killed_run_uses_nothing_any_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    process = holder("use", path)
    with unused(path) as free:
        assert not free
        assert locks.users_of(path) == f"process {process.pid}"
    process.kill()
    process.communicate()
    with unused(path) as free:
        assert free


def test_what_was_removed_meanwhile_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.touch()
    lock = locks.fcntl.flock

    def removed_meanwhile(*arguments: Any) -> None:
        lock(*arguments)
        path.unlink()
        path.touch()

    monkeypatch.setattr(locks.fcntl, "flock", removed_meanwhile)
    with pytest.raises(FileNotFoundError):
        Use(path)


# -- the lock ------------------------------------------------------------------------------------


def test_who_waits_is_told_whom_for_and_a_killed_holder_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)
    path = tmp_path / "lock"
    process = holder("lock", path)

    def kill(record: logging.LogRecord) -> bool:
        process.kill()
        return True

    caplog.handler.addFilter(kill)
    with exclusive(path):
        assert len(caplog.messages) == 1
    process.communicate()
    assert f"{path}: waiting for process {process.pid} on this machine, since '20" in caplog.text
    caplog.clear()
    with exclusive(path):  # nothing of the killed one is left
        assert not caplog.messages


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (
            b'{"pid": 7, "host": "n\\u001b1", "since": "noon"}',
            r"process 7 on 'n\x1b1', since 'noon'",
        ),
        (b'{"pid": [], "host": 1}', "a process that has left no name"),
        (b"\xff", "a process that has left no name"),
    ],
)
def test_a_holder_elsewhere_is_named(tmp_path: Path, note: bytes, said: str) -> None:
    (tmp_path / "lock.holder").write_bytes(note)
    assert locks._holder(tmp_path / "lock.holder") == said


# -- a full disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    build: Build,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kept: int,
    number: int,
) -> None:
    there = build(seed=1)
    if kept < 2:  # else the indexes are there
        shutil.rmtree(cache_dir / "indexes")
    saved = []
    save = cache_module.save_arrays

    def fill(path: Path, arrays: Any) -> None:
        save(path, arrays)
        saved.append(path)
        if len(saved) > kept % 2:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(number, os.strerror(number), str(path))

    for name in ("cache", "subset"):
        monkeypatch.setattr(f"qatval.data.{name}.save_arrays", fill)
    with pytest.raises(QatvalError, match="the cache's disk is full") as caught:
        build()
    assert "\n" not in str(caught.value)
    assert not list(cache_dir.rglob(".*"))
    monkeypatch.undo()
    assert command("verify", "--cache-dir", cache_dir) == 0
    assert open_subset(there.directory).identity == there.identity
    build()
