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
            _with_error(results.ratio(phase, "plain"), results.ratio_error(phase, "plain")),
            _with_error(results.ratio(phase, "frozen"), results.ratio_error(phase, "frozen")),
        )
    console.print(table)
    console.print("± is one standard error: how far pairs of measurements on this machine lie apart.")


def _with_error(ratio: float | None, error: float | None) -> str:
    return _number(ratio) if error is None else f"{_number(ratio)} ±{error:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
