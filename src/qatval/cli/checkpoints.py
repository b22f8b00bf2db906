"""`qatval checkpoints`: fetch and verify the official checkpoints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qatval.core.errors import UsageError
from qatval.core.formatting import terminal_line
from qatval.core.presets import Variant, validated_variants, variant, variant_names
from qatval.data import checkpoints as checkpoint_store
from qatval.data.download import Progress


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `qatval checkpoints` to the command line."""
    parser = subparsers.add_parser("checkpoints", help="fetch or verify official checkpoints")
    actions = parser.add_subparsers(dest="action", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(variant_names())} or their files (default: "
        f"{', '.join(validated_variants())})",
    )
    common.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="where checkpoints are kept (default: where each variant expects its own)",
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
    files = _files(args)
    if args.source.endswith(".pt") and len(files) != 1:
        raise UsageError("checkpoints fetch: --from names one .pt file, so name the one variant")
    for file, official in files:
        path = checkpoint_store.fetch(
            file.name,
            file.parent,
            source=args.source,
            known=official.sha256,
            check=_check,
            progress=_progress_line(file.name),
        )
        print(path)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Print one line for each checkpoint; exit code 1 where one is missing or altered."""
    verdicts = [
        checkpoint_store.verify(file.name, file.parent, known=official.sha256, check=_check)
        for file, official in _files(args)
    ]
    for verdict in verdicts:
        state = "ok" if verdict.sound else "NOT ok"
        print(terminal_line(f"{state:6}  {verdict.name}  {verdict.message}"))
    return 0 if all(verdict.sound for verdict in verdicts) else 1


def _check(path: Path) -> None:
    """Read a file that nothing is known of, as a run would; refuse what is no checkpoint."""
    from qatval.train.checkpoints import read_torch_file

    read_torch_file(path)


def _files(args: argparse.Namespace) -> list[tuple[Path, Variant]]:
    """Return where the variants or files asked for are kept; without any, those validated."""
    known = {name: variant(name) for name in variant_names()}
    by_file = {official.checkpoint.name: official for official in known.values()}
    files = []
    for name in args.names or validated_variants():
        official = known.get(name) or by_file.get(name)
        if official is None:
            raise UsageError(f"unknown checkpoint '{name}': expected one of {', '.join(known)}")
        path = official.checkpoint
        files.append(((args.dir or path.parent) / path.name, official))
    return files


def _progress_line(name: str) -> Progress:
    def show(done: int, expected: int | None) -> None:
        if sys.stderr.isatty():
            total = f" of {expected / 1e6:.1f}" if expected else ""
            print(f"\r{name}: {done / 1e6:.1f}{total} MB", end="", file=sys.stderr, flush=True)
            if done == expected:
                print(file=sys.stderr)

    return show
