"""Benches: one module each, `run(settings: Settings) -> dict[str, float]`. Floors and names are in floors.py."""
