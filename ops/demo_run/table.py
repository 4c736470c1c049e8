"""The closing table: per phase, plain, frozen and TIDE side by side."""

from rich.console import Console
from rich.table import Table

from demo_run.results import MODES, Results


def print_table(console: Console, results: Results, phases: list[str]) -> None:
    """Tokens a second and accept length per phase and mode, and TIDE's ratios on the same prompts."""
    table = Table(title="tokens/s as clients saw them, (accept length)")
    table.add_column("phase")
    for mode in MODES:
        table.add_column(mode, justify="right")
    table.add_column("TIDE, end of phase", justify="right")
    table.add_column("TIDE / plain", justify="right")
    table.add_column("TIDE / frozen", justify="right")
    for phase in phases:
        cells = []
        for mode in MODES:
            rate, accept = results.rate(phase, mode), results.accept_length(phase, mode)
            cells.append("-" if rate is None else f"{rate:.1f} ({_number(accept)})")
        table.add_row(
            phase,
            *cells,
            f"({_number(results.accept_length(phase, 'tide', last=3))})",
            _number(results.ratio(phase, "plain")),
            _number(results.ratio(phase, "frozen")),
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
