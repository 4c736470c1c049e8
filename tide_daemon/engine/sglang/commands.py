"""The commands that the daemon may send, answered in the control thread.

hello        {}                                   what this engine is, where its ring lies
stats        {}                                   counters
set_steps    {"table": [[batch, steps], ...]}
set_capture  {"collect": bool, "sample_rate": float, "max_rows": int, "preferred": [str], "preferred_rate": float,
              "excluded": [str]}
stage        {"directory": str, "version": int, "digest": str}
swap         {}                                   apply what was staged, read back
read_back    {}                                   digest of the live draft
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tide_daemon.engine.control import Handler
from tide_daemon.engine.port import CaptureSettings, DraftState
from tide_daemon.engine.sglang.settings import FEATURES
from tide_daemon.engine.sglang.swap import Swapper
from tide_daemon.errors import EngineError
from tide_daemon.wire.records import NO_DRAFT

if TYPE_CHECKING:
    from tide_daemon.engine.sglang.runtime import Runtime


class Commands:
    """Validates arguments and acts on the runtime."""

    def __init__(self, runtime: "Runtime") -> None:
        self._runtime = runtime

    def handlers(self) -> dict[str, Handler]:
        """By command name."""
        return {
            "hello": self.hello,
            "stats": self.stats,
            "set_steps": self.set_steps,
            "set_capture": self.set_capture,
            "stage": self.stage,
            "swap": self.swap,
            "read_back": self.read_back,
        }

    def hello(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Facts that do not change while this process lives."""
        runtime = self._runtime
        ring = runtime.tap.ring if runtime.tap else None
        return {
            "pid": os.getpid(),
            "epoch": self._epoch(),
            "ring_path": str(ring.path) if ring else "",
            "facts": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(runtime.facts).items()}
            if runtime.facts
            else None,
            "topk": runtime.settings.topk,
        }

    def stats(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Counters since this process started."""
        runtime = self._runtime
        tap, swapper = runtime.tap, runtime.swapper
        return {
            "epoch": self._epoch(),
            "features": {name: runtime.enabled(name) for name in FEATURES},
            "version": swapper.current.version if swapper else NO_DRAFT,
            "digest": swapper.current.digest if swapper else "",
            "num_swaps": swapper.num_swaps if swapper else 0,
            "num_running": runtime.running(),
            "steps": runtime.times.snapshot(),
            "table": [list(entry) for entry in runtime.steps.table],
            "collecting": bool(tap and tap.settings.collect and runtime.enabled("capture")),
            "rows_written": tap.ring.num_rows if tap else 0,
            "rows_dropped": tap.ring.num_dropped if tap else 0,
            "requests_opted_out": tap.num_opted_out if tap else 0,
            "workloads": [[name, *counts] for name, counts in list(tap.served.items())] if tap else [],
            "num_errors": runtime.num_errors,
            "problems": list(runtime.problems),
        }

    def _epoch(self) -> int:
        """Another one in each process."""
        tap = self._runtime.tap
        return int(tap.ring.epoch) if tap else os.getpid()

    def set_steps(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the steps table."""
        table = args.get("table")
        if not isinstance(table, list) or not all(
            isinstance(entry, list) and len(entry) == 2 and all(type(value) is int for value in entry)
            for entry in table
        ):
            raise EngineError("set_steps: table must be a list of [batch size, steps]")
        if not self._runtime.enabled("steps"):
            raise EngineError("the number of steps cannot be changed in this engine; see its problems")
        if self._runtime.num_ranks > 1:
            raise EngineError("with tensor parallelism a steps table goes to all ranks at once, by /set_internal_state")
        self._runtime.steps.set_table([(batch, steps) for batch, steps in table])
        return {}

    def set_capture(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the capture settings."""
        collect, rate, rows = args.get("collect"), args.get("sample_rate"), args.get("max_rows")
        if not isinstance(collect, bool) or type(rate) not in (int, float) or type(rows) is not int:
            raise EngineError("set_capture: needs collect (bool), sample_rate (number) and max_rows (integer)")
        preferred, preferred_rate = args.get("preferred", []), args.get("preferred_rate", 0.0)
        excluded = args.get("excluded", [])
        for labels in (preferred, excluded):
            if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
                raise EngineError("set_capture: preferred and excluded must be lists of labels")
        if type(preferred_rate) not in (int, float) or not 0 <= float(preferred_rate) <= 1:
            raise EngineError("set_capture: preferred_rate must be within 0..1")
        rate = float(rate or 0)
        if not 0 <= rate <= 1 or rows < 0:
            raise EngineError("set_capture: sample_rate must be within 0..1 and max_rows at least 0")
        tap = self._runtime.tap
        if tap is None:
            raise EngineError("capture is off in this engine; see its problems")
        tap.settings = CaptureSettings(collect, rate, rows, tuple(preferred), float(preferred_rate), tuple(excluded))
        return {}

    def stage(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Load a checkpoint into the spare buffers."""
        directory, version, digest = args.get("directory"), args.get("version"), args.get("digest")
        if type(directory) is not str or type(version) is not int or type(digest) is not str or version <= NO_DRAFT:
            raise EngineError("stage: needs directory, version (above 0) and digest")
        self._swapper().stage(Path(directory), DraftState(version, digest))
        return {}

    def swap(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Apply what was staged."""
        state = self._swapper().swap()
        return {"version": state.version, "digest": state.digest}

    def read_back(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Digest of the live parameters, computed now."""
        swapper = self._swapper()
        return {"version": swapper.current.version, "digest": swapper.read_back()}

    def _swapper(self) -> Swapper:
        swapper = self._runtime.swapper
        if swapper is None or not self._runtime.enabled("swap"):
            raise EngineError("swap is off in this engine; see its problems")
        return swapper
