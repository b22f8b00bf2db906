"""Everything that knows Ultralytics: models, data loading, the trainer, evaluation.

Importing this package prepares Ultralytics before its first import, see `qatval.train.patches`.
"""

from qatval.train import patches as patches
