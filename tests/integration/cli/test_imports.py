"""What a role imports, seen from a fresh interpreter in which heavy packages cannot be imported at all."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.nats_fixture import NatsServer

HEAVY = {"torch", "sglang", "numpy", "safetensors", "transformers", "triton"}
MAX_CONTROLLER_MB = 120

WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise ImportError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
{work}
"""


def run_without_heavy(*modules: str) -> subprocess.CompletedProcess[str]:
    script = WITHOUT.format(heavy=HEAVY, work=f"import {', '.join(modules)}\nprint('fine')")
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_the_daemon_needs_nothing_heavy() -> None:
    """Command line, daemon, broker and status import neither torch nor sglang nor numpy."""
    modules = ["cli", "daemon", "broker", "roles.build", "status.app", "tools.config_reference", "tools.version"]
    done = run_without_heavy(*(f"tide_daemon.{name}" for name in modules))
    assert done.stdout == "fine\n", done.stderr


def test_help_imports_no_broker_client() -> None:
    """`tide-daemon --help` is quick: not even nats is imported for it."""
    script = (
        "import sys; from tide_daemon.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'nats', 'aiohttp', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_controller_runs_where_none_of_it_is_installed(nats_server: NatsServer, tmp_path: Path) -> None:
    """It leads, decides, drains, and stays small, in an interpreter that refuses to import torch, sglang or numpy."""
    words = ["--role", "controller"]
    for setting in (f"bus.url={nats_server.url}", f"node.state_dir={tmp_path / 'state'}", "status.port=0"):
        words += ["--set", setting]
    work = f"from tide_daemon.cli import main\nsys.exit(main({words!r}))"
    script = WITHOUT.format(heavy=HEAVY, work=work)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        events = (json.loads(line)["event"] for line in process.stdout)
        assert "decision_taken" in events
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident_mb = int(status.partition("VmRSS:")[2].split()[0]) / 1000
        assert resident_mb <= MAX_CONTROLLER_MB
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
