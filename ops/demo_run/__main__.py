"""`ops/demo`: the command line."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from demo_run.phase_run import Load


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of `ops/demo`."""
    parser = argparse.ArgumentParser(
        prog="ops/demo",
        description="Serves SmolLM2-135M on SGLang, lets tide-daemon learn a draft from the traffic and swap it in "
        "live, and compares with plain decoding and with the draft frozen after the first phase. Ctrl-C stops it all.",
    )
    default_state = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "tide-daemon" / "demo"
    parser.add_argument("--minutes", type=float, default=15.0, help="length once set-up is done (default 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw the run (default: STATE/demo.png)")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end and print addresses")
    parser.add_argument("--kill", action="store_true", help="kill -9 every process in turn and see it recover")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs: begin without a draft")
    parser.add_argument("--state", type=Path, default=default_state, help=f"folder of the run ({default_state})")
    parser.add_argument("--concurrency", type=int, default=Load().concurrency, help="requests at a time (default 4)")
    options = parser.parse_args(arguments)
    if not 1.0 <= options.minutes <= 24 * 60:
        parser.error("--minutes must be from 1 to 1440")
    if not 1 <= options.concurrency <= 8:
        parser.error("--concurrency must be from 1 to 8, the server runs at most 8 requests at a time")
    return options


def main() -> int:
    """Run the demonstration; exit code 0 done, 1 something did not start, 130 stopped by Ctrl-C."""
    options = parse(sys.argv[1:])
    from demo_run.show import run

    try:
        return asyncio.run(run(options))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
