"""Import-only stand-in for torchvision: SGLang and transformers import it while loading, text models never call it.

Every module answers any attribute that is not a constant with an error that says what to install.
"""

from torchvision import io, ops, transforms

__version__ = "0.0.0"

__all__ = ["io", "ops", "transforms"]
