"""Puts the CPU stand-ins on the path, as `launch_env` does for a CPU run of SGLang, before anything imports SGLang."""

import os
import sys

from tide_daemon.engine.sglang.launch_env import CPU_ENVIRONMENT, stand_in_paths

for _name, _value in CPU_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
sys.path[:0] = [path for path in stand_in_paths() if path not in sys.path]
