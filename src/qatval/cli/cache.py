"""`qatval cache`: list, remove and verify what is in the cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from qatval.core.formatting import terminal_line


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval cache` to the command line."""
    parser = subparsers.add_parser("cache", help="list, remove or verify cached subsets")
    actions = parser.add_subparsers(dest="action", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="the cache (default: $QATVAL_CACHE_DIR, else the user's cache directory)",
    )

    listing = actions.add_parser("ls", parents=[common], help="list the entries")
    listing.set_defaults(handler=list_entries)
    removal = actions.add_parser("rm", parents=[common], help="remove entries")
    removal.add_argument("keys", nargs="*", metavar="KEY", help="the beginning of an entry's key")
    removal.add_argument("--all", action="store_true", help="remove every entry")
    removal.set_defaults(handler=remove_entries)

    check = actions.add_parser(
        "verify", parents=[common], help="compare every entry with its digests, remove damaged ones"
    )
    check.set_defaults(handler=verify_entries)


def list_entries(args: argparse.Namespace) -> int:
    """Print one line for each entry."""
    from qatval.data.cache import Cache

    cache = Cache(args.cache_dir)
    entries = cache.entries()
    print(f"{cache.directory}: {len(entries)} entries")
    for entry in entries:
        files = entry.iterdir() if entry.is_dir() else [entry]
        size = sum(file.stat().st_size for file in files)
        print(terminal_line(f"{_key(entry)}  {size / 1e6:8.1f} MB  {_describe(entry)}"))
    return 0


def remove_entries(args: argparse.Namespace) -> int:
    """Remove the entries named, or all; exit code 1 if a run uses one of them, which stays."""
    from qatval.core.errors import UsageError
    from qatval.data.cache import Cache, InUseError

    if args.all == bool(args.keys):
        raise UsageError("cache rm: name the keys to remove, or --all ('qatval cache ls' has them)")
    cache = Cache(args.cache_dir)
    spared = 0
    with cache.building():
        entries = cache.entries()
        chosen = dict.fromkeys(entries) if args.all else {}
        for key in args.keys:
            matching = [entry for entry in entries if entry.name.startswith(key)]
            if len(matching) != 1:
                raise UsageError(
                    f"cache rm: '{key}' begins the key of {len(matching)} entries, expected one; "
                    "'qatval cache ls' lists them"
                )
            chosen[matching[0]] = None
        for entry in chosen:
            try:
                cache.remove(entry)
            except InUseError as error:
                spared += 1
                print(terminal_line(f"kept {_key(entry)}: {error}"))
            else:
                print(f"removed {_key(entry)}")
    return 1 if spared else 0


def verify_entries(args: argparse.Namespace) -> int:
    """Check every entry; remove the damaged, to be built again when next asked for."""
    from qatval.data.cache import Cache, DamagedError, InUseError
    from qatval.data.subset import verify_subset

    cache = Cache(args.cache_dir)
    damaged = 0
    with cache.building():
        for path in cache.forget_changed():
            damaged += 1
            print(terminal_line(f"{path}  changed behind its size and time: it is read again"))
        for entry in cache.entries():
            check = verify_subset if entry.parent == cache.subsets else cache.load_index
            try:
                check(entry)
            except DamagedError as error:
                damaged += 1
                try:
                    cache.remove(entry)
                except InUseError as used:
                    print(terminal_line(f"{_key(entry)}  damaged, kept: {used} ({error})"))
                    continue
                print(
                    terminal_line(
                        f"{_key(entry)}  damaged, removed: built anew when needed ({error})"
                    )
                )
            else:
                print(f"{_key(entry)}  ok")
    return 1 if damaged else 0


def _key(entry: Path) -> str:
    return entry.name[:16]


def _describe(entry: Path) -> str:
    from qatval.core.errors import QatvalError
    from qatval.data.cache import DamagedError
    from qatval.data.subset import open_subset

    if not entry.is_dir():
        return "annotation index"
    try:
        subset = open_subset(entry)
    except DamagedError:
        return "subset, damaged"
    except QatvalError:
        return "subset of a dataset that is no longer there"
    seed = subset.identity["train"]["seed"]
    drawn = "" if seed is None else f", seed {seed}"
    return (
        f"{subset.dataset_name} subset, {len(subset.train)} train / {len(subset.val)} val{drawn}, "
        f"from {subset.coco_root}"
    )
