"""Stand-in for torchvision.ops."""

from torchvision._absent import names_of
from torchvision.ops import boxes

__all__ = ["boxes"]

__getattr__ = names_of(__name__)
