"""tide-daemon: keeps a speculative-decoding draft model aligned with live traffic."""

__version__ = "0.1.0"
