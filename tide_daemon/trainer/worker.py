"""The training worker's process: `python -m tide_daemon.trainer.worker`, started by worker_link.py.

Commands come as frames on stdin, events go as frames to stdout (pipe.py); whatever else prints to stdout is sent to
stderr. What a command does is in jobs.py; here are only the process and its end:

- a job stops between two steps when told to, or when stdin ends, which is how the worker learns that the daemon
  was killed: it checkpoints and leaves, and no worker outlives its daemon for longer than a step;
- SIGINT is ignored: Ctrl-C in a terminal reaches the whole process group, and the daemon decides;
- an error that is not a TideError ends the process with a traceback on stderr; the daemon starts another.

Commands by "do": open {settings, state_dir}; train {job, round, spec, serving_dir, serving_digest, rolled_back};
score {job, spec, drafts, max_requests, max_positions}; stop {}. Events: ready {}, progress {job, step, num_steps, loss,
num_tokens, left_s}, finished {job, ...}, stopped {job}, failed {job, reason}.
"""

import functools
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import BinaryIO

from tide_daemon.allocator import trim_heap
from tide_daemon.errors import TideError
from tide_daemon.trainer.pipe import Message, pack, read_blocking
from tide_daemon.trainer.settings import TrainerSettings, from_map, target_dir

Command = tuple[Message, threading.Event]


def take_stdout() -> BinaryIO:
    """The pipe to the daemon; from now on file descriptor 1 is stderr."""
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return events


def read_commands(source: BinaryIO, commands: "queue.SimpleQueue[Command | None]") -> None:
    """Thread: queue commands, each with its own stop flag; stop and the end of the stream set the newest job's."""
    stop = threading.Event()
    while (message := read_blocking(source)) is not None:
        if message["do"] == "stop":
            stop.set()
            continue
        stop = threading.Event()
        commands.put((message, stop))
    stop.set()
    commands.put(None)


def stand_back(settings: TrainerSettings) -> None:
    """Take the priority that is configured; threads started later inherit it.

    A niced process still counts as a busy one where the kernel places what wakes up, so beside it a server's
    processes queue behind each other; a processor that only SCHED_IDLE work runs on counts as free
    (kernel/sched/fair.c, sched_idle_cpu).
    """
    os.nice(settings.nice)
    if settings.only_idle and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> int:
    """Serve commands until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = take_stdout()

    def send(event: Message) -> None:
        data = memoryview(pack(event))
        while data:
            data = data[pipe.write(data) :]

    def report(job: int, progress: Message) -> None:
        send({"event": "progress", "job": job, **progress})

    commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
    threading.Thread(target=read_commands, args=(sys.stdin.buffer, commands), daemon=True).start()
    first = commands.get()
    if first is None:
        return 0
    settings = from_map(first[0]["settings"])
    stand_back(settings)
    # Only now, so that the import of torch is polite already.
    from tide_daemon.trainer.jobs import Jobs, StoppedError

    try:
        state_dir = Path(first[0]["state_dir"])
        jobs = Jobs(settings, state_dir, target_dir(settings, state_dir))
    except TideError as error:
        send({"event": "failed", "reason": str(error)})
        return 0
    send({"event": "ready"})
    while (command := commands.get()) is not None:
        message, stop = command
        job = message["job"]
        try:
            result = jobs.run(message, stop, functools.partial(report, job))
            send({"event": "finished", "job": job, **result})
        except StoppedError:
            send({"event": "stopped", "job": job})
        except TideError as error:
            send({"event": "failed", "job": job, "reason": str(error)})
        trim_heap()
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except BrokenPipeError:
        code = 0  # the daemon is gone; what matters is on the disk
    except Exception:
        traceback.print_exc()
    # Not sys.exit: the interpreter cannot end in order while the thread above waits for stdin; it would abort instead.
    sys.stderr.flush()
    os._exit(code)
