"""Holds sgl_kernel; put on PYTHONPATH where the real one is not installed."""
