"""The broker behind a small port: see port.py, then jetstream.py or memory.py."""
