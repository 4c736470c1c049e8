"""Holds torchvision; put on PYTHONPATH where the real one is not installed."""
