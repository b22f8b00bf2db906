"""Validation with pytest, and runs made up for tests of what reads them.

The plugin (`qatval.testing.plugin`): options, scenarios as parameters, one training per group of
them. A project opts in by naming it in the ``conftest.py`` of its root; nothing is registered by
being installed.
"""

from qatval.testing.builders import as_json as as_json
from qatval.testing.builders import build_summary as build_summary
from qatval.testing.builders import build_thresholds as build_thresholds
from qatval.testing.builders import changed as changed
from qatval.testing.builders import loaded as loaded
from qatval.testing.builders import merged as merged
from qatval.testing.builders import reduced_to_required as reduced_to_required
from qatval.testing.deployments import build_deployment as build_deployment
