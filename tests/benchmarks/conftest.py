"""A script of benchmarks/ imports its neighbours by their bare names, so the tests do too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
