import os
import subprocess
import sys

import pytest

CODE = """
import os, threading
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.trainer.worker import stand_back
stand_back(TrainerSettings(name="t", model="m", nice=3, only_idle={only_idle}))
found = []
thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
print(os.sched_getscheduler(0), found[0], os.nice(0))
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="SCHED_IDLE is Linux's")
@pytest.mark.parametrize(("only_idle", "policy"), [(False, "SCHED_OTHER"), (True, "SCHED_IDLE")])
def test_the_worker_and_its_later_threads_stand_back(only_idle: bool, policy: str) -> None:
    """In a process of its own, since a priority given up does not come back."""
    before = os.nice(0)
    code = CODE.format(only_idle=only_idle)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wanted = getattr(os, policy)
    assert done.stdout.split() == [str(wanted), str(wanted), str(min(19, before + 3))]
