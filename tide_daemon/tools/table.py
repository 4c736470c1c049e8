"""Rows of words as a table: columns as wide as their widest word, numbers to the right."""

from collections.abc import Sequence

_GAP = "  "


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of text, heads first. A column of numbers (as int or float) is set to the right."""
    texts = [[_text(value) for value in row] for row in rows]
    columns = list(zip(heads, *texts, strict=True))
    widths = [max(len(text) for text in column) for column in columns]
    right = [bool(rows) and all(isinstance(row[index], int | float) for row in rows) for index in range(len(heads))]
    lines = []
    for row in [list(heads), *texts]:
        cells = [
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append(_GAP.join(cells).rstrip())
    return lines


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
