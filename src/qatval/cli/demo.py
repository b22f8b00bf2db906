"""``qatval demo``: one question answered on the embedded data, in minutes.

What is asked, and of how many seeds, was settled by power (`qatval.analysis.power`) and not by what
came out. Ten trainings of ``baseline`` with this preset spread by 0.5 points (docs/statistics.md),
and 128 images leave a difference to an untrained model a standard error of about 0.5. Three seeds
then find 2.1 points in 80 % where one contrast is declared before the runs, two seeds 5.8; that
rounding costs 6 is known without any training. So the primary contrast is whether training in 4
bits is better than mere rounding. The methods' own claim, ``ema+qc`` against ``baseline``, was
about one point in earlier studies, too little for three seeds, and stays among the others.

The margin is a third of what rounding costs. ``baseline`` and ``ema`` share a training: if their
difference spreads by 0.3 points over seeds, it is shown to lie within the margin, corrected over
six, in about 80 %. Controls in FP32 and GPTQ would take nearly as long again and widen the family:
`qatval run --with-controls` has them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qatval.cli.options import add_shared
from qatval.core import presets as config
from qatval.core.option_types import seeds
from qatval.core.progress import Progress
from qatval.quant import methods

SEEDS = (0, 1, 2)
METHODS = (*methods.method_names(), "ptq", "ptq+shift")
PRIMARY = ("ema+qc", "ptq")
MARGIN = 0.02


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "demo",
        help="is training in 4 bits better than rounding? three seeds on the embedded data",
        description=f"Draw the embedded dataset, run {', '.join(METHODS)} with every seed on it "
        f"(methods of one seed share a training) and compare them. {' against '.join(PRIMARY)} is "
        "declared as the primary contrast before the runs, and all are tested to be alike within "
        f"{MARGIN:g} mAP. An interrupted demo goes on when the same command is given again; a "
        "finished one is replaced.",
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
        default=SEEDS,
        metavar="N,N",
        help=f"of the runs (default: {','.join(map(str, SEEDS))})",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="FP32 checkpoint to fine-tune (default: the variant's)",
    )
    parser.add_argument("--device", metavar="D", help="cpu or 0 (default: 0 if there is a GPU)")
    add_shared(parser, "--cache-dir")
    parser.add_argument("--restart", action="store_true", help="begin an interrupted demo anew")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run everything and end with the comparison."""
    from qatval.analysis.comparison import compare
    from qatval.analysis.runs import collect
    from qatval.data.shapes import draw_dataset
    from qatval.report.comparison import write_comparison
    from qatval.report.terminal import terminal_table
    from qatval.run import runner
    from qatval.run.configuration import RunConfig, configure
    from qatval.run.folder import is_finished
    from qatval.run.workspace import is_interrupted

    def of_seed(number: int) -> RunConfig:
        return configure(
            variant=args.variant,
            methods=METHODS,
            profile=args.profile,
            run_root=args.out / f"{args.variant}-{args.profile}-seed{number}",
            coco_root=args.data,
            seed=number,
            primary=PRIMARY,
            checkpoint=args.checkpoint,
            device=args.device,
            cache_dir=args.cache_dir,
            overwrite=True,
            restart=args.restart,
        )

    draw_dataset(args.data)
    configs = [of_seed(number) for number in args.seeds]
    roots = [config.run_root for config in configs]
    # Seeds are run in order: where one was interrupted, those before it have had their turn.
    begun = [] if args.restart else [number for number, r in enumerate(roots) if is_interrupted(r)]
    for number, settled in enumerate(configs):
        if number < max(begun, default=0) and all(
            is_finished(settled.root_of(method.name)) for method in settled.methods
        ):
            continue
        with Progress(f"{args.variant} {args.profile} seed {settled.seed}") as progress:
            runner.run(settled, progress)
    runs, unreadable = collect(roots)
    comparison = compare(runs, unreadable, margin=MARGIN)
    written = write_comparison(comparison, runs, args.out / "comparison.json", args.cache_dir)
    print(terminal_table(comparison))
    print(f"comparison: {written.markdown}")
    print(f"report: {written.html}")
    return 0
