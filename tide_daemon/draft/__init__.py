"""The EAGLE-3 draft: shapes, vocabulary map, weights, checkpoints and the deltas between them.

Shared by engine and trainer. It knows no engine and no bus; torch, safetensors and zstandard only.
Start with config.py and checkpoint.py.
"""
