"""``qatval demo``: the whole question answered on the embedded data, in minutes, with controls."""

from __future__ import annotations

import argparse
from pathlib import Path

from qatval.cli.options import add_shared
from qatval.core import presets as config
from qatval.core.option_types import seeds
from qatval.core.progress import Progress
from qatval.quant import methods


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "demo",
        help="three methods and their controls, two seeds, on the embedded data, and a comparison",
        description="Draw the embedded dataset, run every method and every control with every seed "
        "on it (methods of one seed share a training) and compare them. An interrupted demo goes "
        "on when the same command is given again; a finished one is replaced.",
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
        "--seeds", type=seeds, default=(0, 1), metavar="N,N", help="of the runs (default: 0,1)"
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
            methods=methods.with_controls(methods.method_names()),
            profile=args.profile,
            run_root=args.out / f"{args.variant}-{args.profile}-seed{number}",
            coco_root=args.data,
            seed=number,
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
    comparison = compare(runs, unreadable)
    written = write_comparison(comparison, runs, args.out / "comparison.json", args.cache_dir)
    print(terminal_table(comparison))
    print(f"comparison: {written.markdown}")
    print(f"report: {written.html}")
    return 0
