"""Which layer hurts: the one that was hurt on purpose, found in a run folder as runs leave it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from qatval.cli.main import main
from qatval.core.digests import FileDigest
from qatval.core.files import sha256_of
from qatval.core.presets import quantization, variant
from qatval.core.summary import write_summary
from qatval.data.shapes import draw_dataset
from qatval.quant.integer import to_integer
from qatval.quant.layers import insert_quantizers
from qatval.quant.quantized_conv import quantized_layers, weight_scale_value
from qatval.run.sensitivity import Sensitivity, sensitivity
from qatval.testing import build_summary
from qatval.testing.builders import changed
from qatval.train.models import CheckpointInfo, load_pretrained, save_checkpoint

QUIET: Any = None
CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
W8 = dataclasses.replace(quantization("w4a16"), weight_bit_width=8)
"""So fine that what is made coarse in one layer is all there is to find."""
