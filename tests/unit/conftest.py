"""Unit tests compute with small tensors: a second thread would cost more than it gives.

Set before anything imports torch, which reads it once.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
