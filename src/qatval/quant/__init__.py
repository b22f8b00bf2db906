"""Quantization in plain terms: layers, codes, averages and corrections, as torch modules.

Nothing here knows how a model is trained or where its data come from.
"""

import logging

# Brevitas asks torch for a compiler, and torch warns about a CUDA toolkit that nothing here needs.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
