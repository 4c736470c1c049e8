"""Faults inflicted on the whole system, and what came of each. The list: table.py; the command: ops/faults."""
