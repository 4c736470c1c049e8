"""Tests of the real system. They share the demonstration's model, role configuration and child processes (ops/)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "ops"))
