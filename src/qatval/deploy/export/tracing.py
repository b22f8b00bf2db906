"""From a detector to the graph of the head that answers, by torch's exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

# The first two as Ultralytics' own exports have them.
INPUT, ANSWER, CANDIDATES = "images", "output0", "candidates"
ANY = 2
"""Images in what a graph for any number of them is traced with: of 1 it would stay 1."""


def with_one_head(model: Any) -> Any:
    """Return a copy of a detector, in evaluation, without the head that does not answer."""
    copy = deepcopy(model).eval()
    head = copy.model[-1]
    if head.end2end:
        head.cv2 = head.cv3 = None
    head.export = True
    head.dynamic = True  # or it keeps anchors, and with them how many images there were
    return copy


class Answering(nn.Module):
    """A detector that returns its answer and, where that is a choice, what it is chosen from.

    These candidates are ``(batch, anchors, 4 + classes)``.
    """

    def __init__(self, model: Any) -> None:
        """Take a detector from `with_one_head`, or a folded one."""
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor or two."""
        head = self.model.model[-1]
        candidates: list[Tensor] = []

        def choose(every: Tensor) -> Tensor:
            candidates.append(every)
            answer: Tensor = type(head).postprocess(head, every)
            return answer

        head.postprocess = choose
        try:
            return self.model(images), *candidates
        finally:
            del head.postprocess


def traced(model: Any, imgsz: int, batch: int | None, opset: int) -> onnx.ModelProto:
    """Return a float detector's graph, its initializers under the names they have in the model.

    Args:
        model: As for `Answering`.
        imgsz: Side of the input in pixels.
        batch: Images of one call, None for any number.
        opset: Of the graph.

    Returns:
        From `INPUT` to `ANSWER`. The candidates, if any, are the value `CANDIDATES` on the way.
    """
    answering = Answering(model).eval()
    images = torch.zeros(batch or ANY, 3, imgsz, imgsz)
    outputs = [ANSWER, CANDIDATES] if model.model[-1].end2end else [ANSWER]
    with _quiet():
        program = torch.onnx.export(
            answering,
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if batch is None else None,
            verbose=False,
        )
    assert program is not None
    exported = program.model_proto
    del exported.graph.output[1:]
    _without_prefix(exported.graph, "model.")
    return exported


def _without_prefix(graph: onnx.GraphProto, prefix: str) -> None:
    names = {tensor.name: tensor.name.removeprefix(prefix) for tensor in graph.initializer}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says of Ultralytics' code, which nobody can do anything about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
