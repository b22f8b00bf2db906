"""`qatval checkpoints`: fetch and verify the official YOLOv10 checkpoints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qatval.core.errors import UsageError
from qatval.core.presets import variant, variant_names
from qatval.data import checkpoints as checkpoint_store


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval checkpoints` to the command line."""
    parser = subparsers.add_parser("checkpoints", help="fetch or verify official checkpoints")
    actions = parser.add_subparsers(dest="action", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"variants or their files (default: {', '.join(variant_names())})",
    )
    common.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        default=_default_path(variant_names()[0]).parent,
        help="where checkpoints are kept (default: %(default)s)",
    )

    fetching = actions.add_parser("fetch", parents=[common], help="download what is missing")
    fetching.add_argument(
        "--from",
        dest="source",
        metavar="URL",
        default=checkpoint_store.RELEASE_URL,
        help="folder or .pt file, https:, http: or file: (default: %(default)s)",
    )
    fetching.set_defaults(handler=fetch)

    checking = actions.add_parser("verify", parents=[common], help="compare with the digests")
    checking.set_defaults(handler=verify)


def fetch(args: argparse.Namespace) -> int:
    """Download the checkpoints that are missing, and print where they are."""
    names = _file_names(args.names)
    if args.source.endswith(".pt") and len(names) != 1:
        raise UsageError("checkpoints fetch: --from names one .pt file, so name the one variant")
    for name in names:
        path = checkpoint_store.fetch(
            name, args.dir, source=args.source, progress=_progress_line(name)
        )
        print(path)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Print one line for each checkpoint; exit code 1 where one is missing or altered."""
    verdicts = [checkpoint_store.verify(name, args.dir) for name in _file_names(args.names)]
    for verdict in verdicts:
        print(f"{'ok' if verdict.sound else 'NOT ok':6}  {verdict.name}  {verdict.message}")
    return 0 if all(verdict.sound for verdict in verdicts) else 1


def _file_names(asked: list[str]) -> list[str]:
    """Turn variants or file names into file names; without any, all variants."""
    known = {name: _default_path(name).name for name in variant_names()}
    names = []
    for name in asked or known:
        if name not in known and name not in known.values():
            raise UsageError(f"unknown checkpoint '{name}': expected one of {', '.join(known)}")
        names.append(known.get(name, name))
    return names


def _default_path(name: str) -> Path:
    return variant(name).checkpoint


def _progress_line(name: str) -> checkpoint_store.Progress:
    def show(done: int, expected: int | None) -> None:
        if sys.stderr.isatty():
            total = f" of {expected / 1e6:.1f}" if expected else ""
            print(f"\r{name}: {done / 1e6:.1f}{total} MB", end="", file=sys.stderr, flush=True)
            if done == expected:
                print(file=sys.stderr)

    return show
