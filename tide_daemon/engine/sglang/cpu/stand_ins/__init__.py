"""Folders for PYTHONPATH, not for import through this package: `kernel/sgl_kernel` and `vision/torchvision`."""
