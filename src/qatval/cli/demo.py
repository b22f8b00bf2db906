"""``qatval demo``: one question answered on the embedded data, in minutes.

It is the study ``run/study/demo.toml``, which says why it asks what it asks, on this machine.
"""

from __future__ import annotations

import argparse
import functools
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from qatval.cli.options import add_shared
from qatval.core import presets as config
from qatval.core.errors import QatvalError
from qatval.core.formatting import terminal_line
from qatval.core.option_types import seeds

if TYPE_CHECKING:
    from qatval.run.study.matrix import Study


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    demo = _demo()
    parser = subparsers.add_parser(
        "demo",
        help="is training in 4 bits better than rounding? three seeds on the embedded data",
        description=f"Draw the embedded dataset, run {', '.join(demo.methods)} with every seed on "
        "it (methods of one seed share a training) and compare them. "
        f"{' against '.join(demo.primary)} is declared as the primary contrast before the runs, "
        f"and all are tested to be alike within {demo.margin:g} mAP. It is a study ('qatval "
        "study'): the same command goes on with one that was interrupted, and runs nothing again "
        "of one that is finished.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="folder of the runs (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("datasets/shapes"),
        metavar="DIR",
        help="where the dataset is drawn, or has been (default: %(default)s)",
    )
    add_shared(parser, "--variant")
    parser.add_argument(
        "--profile",
        default="smoke",
        choices=config.profile_names(),
        help="how much is trained (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=seeds,
        default=demo.seeds,
        metavar="N,N",
        help=f"of the runs (default: {','.join(map(str, demo.seeds))})",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="FP32 checkpoint to fine-tune (default: the variant's)",
    )
    parser.add_argument("--device", metavar="D", help="cpu or 0 (default: 0 if there is a GPU)")
    add_shared(parser, "--cache-dir")
    parser.add_argument(
        "--restart", action="store_true", help="remove what is there and begin anew"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run everything that is not there yet and end with the comparison."""
    from qatval.cli.study import carry_out
    from qatval.data.shapes import draw_dataset
    from qatval.run.study.engines.local import LocalEngine
    from qatval.run.study.estimate import estimate
    from qatval.run.study.plan import discard
    from qatval.run.study.planning import planned

    asked = _asked_for(args, _gpus(args.device))
    draw_dataset(args.data)
    if args.restart:
        discard(args.out)
    plan = planned(asked, args.out)
    engine = LocalEngine(plan.resources)
    for line in estimate(plan, args.out, len(engine.places)).lines():
        print(terminal_line(line), flush=True)
    return carry_out(plan, args.out, engine, cache_dir=args.cache_dir)


@functools.cache
def _demo() -> Study:
    from qatval.run.study.file import load_study

    return load_study(Path(str(files("qatval.run.study") / "demo.toml")))


def _asked_for(args: argparse.Namespace, gpus: int) -> Study:
    """Return the demo's study with what the options change."""
    from msgspec.structs import replace

    from qatval.run.study.matrix import Schedule

    checkpoint = None if args.checkpoint is None else str(args.checkpoint.absolute())
    return replace(
        _demo(),
        source="qatval demo",
        variants=(args.variant,),
        seeds=tuple(args.seeds),
        dataset=str(args.data.absolute()),
        trainings={args.profile: Schedule(profile=args.profile, checkpoint=checkpoint)},
        resources={"gpus": gpus},
    )


def _gpus(device: str | None) -> int:
    """Return how many GPUs a run takes, and let this process and its own see no others.

    Raises:
        QatvalError: If one is not there.
    """
    from qatval.run.study.engines.local import visible_gpus

    if device == "cpu":
        return 0
    found = visible_gpus()
    if device is None:
        return min(len(found), 1)
    indices = device.split(",")
    if not all(index.isdecimal() and int(index) < len(found) for index in indices):
        raise QatvalError(
            f"--device must be cpu, 0 or a list such as 0,1 of the {len(found)} GPUs that are "
            f"there, got '{device}'"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(found[int(index)] for index in indices)
    return len(indices)
