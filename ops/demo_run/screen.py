"""Live progress on the terminal; plain lines, now and then, where there is no terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from demo_run.timeline import Timeline

LINE_EVERY_S = 15.0
"""Without a terminal: one line each so many seconds."""


class Screen:
    """Shows the phase, the traffic, the draft and the last decision with its reason."""

    def __init__(self, timeline: Timeline, total_s: float, console: Console) -> None:
        self.phase = ""
        self.doing = ""
        self.num_requests = 0
        self.num_failed = 0
        self.num_tokens = 0
        self._timeline = timeline
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            console=console,
        )
        self._total = self._progress.add_task("whole run", total=total_s)
        self._phase = self._progress.add_task("waiting", total=1.0)
        self._live = Live(console=self._console, refresh_per_second=2, get_renderable=self._render, transient=True)
        self._started = time.monotonic()
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, highlight=False)

    def enter_phase(self, name: str, seconds: float) -> None:
        self.phase = name
        self._progress.reset(self._phase, total=seconds, description=f"phase {name}")

    def count(self, num_tokens: int) -> None:
        """One answered request of TIDE's own server."""
        self.num_requests += 1
        self.num_tokens += num_tokens

    def tick(self, phase_elapsed_s: float) -> None:
        """Move the bars; without a terminal print a line when it is time."""
        self._progress.update(self._total, completed=time.monotonic() - self._started)
        self._progress.update(self._phase, completed=phase_elapsed_s)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._console.print(f"[{now - self._started:5.0f} s] " + " | ".join(f"{k}: {v}" for k, v in self._facts()))

    def _facts(self) -> list[tuple[str, str]]:
        line = self._timeline
        recent = line.points[-8:]
        rows = sum(p.num_rows for p in recent)
        step_s = sum(p.step_s for p in recent)
        trainer, node = line.trainer, line.node
        facts = [
            ("phase", f"{self.phase} ({self.doing})"),
            ("requests", f"{self.num_requests} answered, {self.num_failed} failed"),
            ("tokens", str(self.num_tokens)),
            ("accept length", f"{sum(p.num_tokens for p in recent) / rows:.2f}" if rows else "-"),
            ("engine tokens/s", f"{sum(p.num_tokens for p in recent) / step_s:.1f}" if step_s else "-"),
            ("draft version", str(node.running_version) if node else "-"),
        ]
        if trainer is not None:
            facts.append(("samples stored", f"{trainer.num_requests} requests, {trainer.num_tokens} tokens"))
            facts.append(
                ("trainer", _trainer_words(trainer.state, trainer.round, trainer.step, trainer.num_steps_total))
            )
        if line.decisions:
            facts.append(("last decision", line.decisions[-1].reason))
        return facts

    def _render(self) -> Panel:
        table = Table.grid(padding=(0, 2))
        for name, value in self._facts():
            table.add_row(f"[bold]{name}[/bold]", value)
        return Panel(Group(self._progress, table), title="tide-daemon", border_style="cyan")


def _trainer_words(state: str, number: int, step: int, total: int) -> str:
    if state == "training" and total:
        return f"round {number}, step {step} of {total}"
    return f"{state} (round {number})" if number else state
