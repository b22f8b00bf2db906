"""The runtimes that an exported file is run by, on a CPU, all behind one class.

Neither torch nor the ``onnx`` package is needed, and no runtime but the one that is asked for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qatval.core.deployment import RuntimeName
from qatval.core.errors import QatvalError
from qatval.deploy.card import Card
from qatval.deploy.model_file import read_card

_T = TypeVar("_T")
Images = NDArray[np.float32]

_SHOWN = 300  # characters of what a runtime says of a file

# How the runtimes call the types of tensors.
_PRECISIONS = {
    "float": "float32",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i4": "int4",
    "u4": "uint4",
    "i8": "int8",
    "u8": "uint8",
}


class Runtime(ABC):
    """An exported file, loaded and ready to answer.

    Attributes:
        name, version: Of the runtime.
        file, card: What is run, and what it says of itself.
        threads: That the runtime computes with.
    """

    name: RuntimeName
    version: str

    def __init__(self, file: Path, card: Card, threads: int) -> None:
        """Load a file; see `open_runtime`."""
        self.file, self.card, self.threads = file, card, threads
        self._asked(self._load)
        self._refuse_other_graph(*self._asked(self._shapes))

    def run(self, images: Images) -> NDArray[np.float32]:
        """Return the graph's answer.

        Args:
            images: ``(batch, 3, imgsz, imgsz)``, as the card's `Input` says.

        Raises:
            QatvalError: The graph takes other images, or the runtime fails on these.
        """
        told = self.card.input
        expected = (told.batch or len(images), 3, told.imgsz, told.imgsz)
        if images.shape != expected:
            raise QatvalError(
                f"{self.file}: takes images of the shape {_written(expected)}, not "
                f"{_written(images.shape)}; export the run for the size and batch that you need"
            )
        return self._asked(lambda: self._answer(images))

    @abstractmethod
    def executed(self) -> dict[str, int]:
        """Return in which precision how many convolutions are computed, as the runtime tells.

        A convolution counts under the type of its input; where its weights have another one, that
        is added: ``"float32, weights int4"``.
        """

    @abstractmethod
    def _load(self) -> None:
        """Load the file."""

    @abstractmethod
    def _shapes(self) -> tuple[list[Any], list[Any]]:
        """Return the sides of each input and of each output, anything but a number where open."""

    @abstractmethod
    def _answer(self, images: Images) -> NDArray[np.float32]:
        """Compute."""

    def _refuse_other_graph(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Refuse a graph that is not what its card says."""
        side, batch = self.card.input.imgsz, self.card.input.batch
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]) != 4 or len(outputs[0]) != 3:
            raise QatvalError(
                f"{self.file}: its graph is not what its card says: expected one input of images "
                "and one output of detections; export the run again"
            )
        for found, said in zip(inputs[0], (batch, 3, side, side), strict=True):
            if isinstance(found, int) and found != said:
                raise QatvalError(
                    f"{self.file}: its graph takes images of the shape {_written(inputs[0])}, its "
                    f"card says {_written((batch, 3, side, side))}; export the run again"
                )

    def _asked(self, what: Callable[[], _T]) -> _T:
        """Return what the runtime answers, and what it complains of in one line."""
        try:
            return what()
        except (QatvalError, MemoryError):
            raise
        except Exception as error:  # of both runtimes, classes of their own below Exception
            said = " ".join(str(error).split())[-_SHOWN:]
            raise QatvalError(
                f"{self.file}: {self.name} {self.version} cannot run it ({said}): update "
                f"{self.name}, or take another --runtime"
            ) from error


class OnnxRuntime(Runtime):
    """ONNX Runtime."""

    name = "onnxruntime"

    def _load(self) -> None:
        self._session = self._opened()

    def _opened(self, profile: str | None = None) -> Any:
        with _needed(self.name, extra="export"):
            import onnxruntime
        self.version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised as well
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Weights then become float32 once, at loading. By default they do so in every call, and
        # quantized inputs would be computed by integer kernels that round another way than the
        # training did.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        return onnxruntime.InferenceSession(
            os.fspath(self.file), options, providers=["CPUExecutionProvider"]
        )

    def _shapes(self) -> tuple[list[Any], list[Any]]:
        session = self._session
        return [i.shape for i in session.get_inputs()], [o.shape for o in session.get_outputs()]

    def _answer(self, images: Images) -> NDArray[np.float32]:
        (name,) = (i.name for i in self._session.get_inputs())
        answer: NDArray[np.float32] = self._session.run(None, {name: images})[0]
        return answer

    def executed(self) -> dict[str, int]:
        """As the profile of one call has it."""
        return self._asked(self._profiled)

    def _profiled(self) -> dict[str, int]:
        told = self.card.input
        with tempfile.TemporaryDirectory() as folder:
            session = self._opened(os.path.join(folder, "profile"))  # noqa: PTH118
            image = np.zeros((told.batch or 1, 3, told.imgsz, told.imgsz), np.float32)
            session.run(None, {session.get_inputs()[0].name: image})
            events = json.loads(Path(session.end_profiling()).read_bytes())
        nodes = [event["args"] for event in events if event["cat"] == "Node"]
        kinds = []
        for node in nodes:
            if "Conv" in node["op_name"]:
                types = [kind for shaped in node["input_type_shape"] for kind in shaped]
                # between both it has the input's scale and zero point
                kinds.append((types[0], types[3 if node["op_name"] == "QLinearConv" else 1]))
        return _counted(kinds)


class OpenVino(Runtime):
    """OpenVINO on its CPU plugin."""

    name = "openvino"

    def _load(self) -> None:
        with _needed(self.name, extra="openvino"):
            import openvino
        self.version = openvino.__version__.partition("-")[0]
        options = {
            # on processors with bfloat16 it would take that
            "INFERENCE_PRECISION_HINT": "f32",
            # and would round the inputs of products with int4 weights to 8 bits
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
        }
        self._model = openvino.Core().compile_model(os.fspath(self.file), "CPU", options)

    def _shapes(self) -> tuple[list[Any], list[Any]]:
        inputs, outputs = (
            [
                [side.get_length() if side.is_static else None for side in port.partial_shape]
                for port in ports
            ]
            for ports in (self._model.inputs, self._model.outputs)
        )
        return inputs, outputs

    def _answer(self, images: Images) -> NDArray[np.float32]:
        return np.array(self._model(images)[0])

    def executed(self) -> dict[str, int]:
        """As the graph that is executed has it."""
        layers = self._asked(lambda: self._model.get_runtime_model().get_ops())
        return _counted(
            (_type_of(layer.input(0)), _type_of(layer.input(1)))
            for layer in layers
            # 1x1 convolutions of compressed weights become matrix products
            if _said(layer, "layerType") in ("Convolution", "FullyConnected")
        )


def _type_of(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _said(layer: Any, what: str) -> str:
    return str(layer.get_rt_info()[what].value)


def _counted(kinds: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Count pairs of the types of inputs and weights."""
    named = ([_PRECISIONS.get(kind, kind) for kind in pair] for pair in kinds)
    return dict(Counter(x if x == w else f"{x}, weights {w}" for x, w in named))


def _written(shape: Any) -> str:
    return "x".join("?" if side is None else str(side) for side in shape)


_RUNTIMES: dict[RuntimeName, type[Runtime]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def installed() -> tuple[RuntimeName, ...]:
    """Return the runtimes that there are on this machine, without loading them."""
    return tuple(name for name in _RUNTIMES if importlib.util.find_spec(name))


@contextmanager
def _needed(name: str, *, extra: str) -> Iterator[None]:
    """Say in one line how to install what cannot be imported."""
    try:
        yield
    except ImportError as error:
        raise QatvalError(
            f"the runtime {name} cannot be loaded ({error}): install it with "
            f"pip install 'qatval[{extra}]'"
        ) from error


def open_runtime(name: RuntimeName, file: Path, *, threads: int) -> Runtime:
    """Load an exported file.

    Args:
        name: Of the runtime.
        file: What `qatval export` wrote; it is not trusted.
        threads: To compute with.

    Raises:
        QatvalError: The runtime is not installed, or the file is not what `read_card` accepts, the
            runtime cannot load it, or its graph is not what its card says.
    """
    return _RUNTIMES[name](file, read_card(file), threads)
