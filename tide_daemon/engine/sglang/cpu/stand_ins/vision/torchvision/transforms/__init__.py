"""Stand-in for torchvision.transforms: the enum that transformers reads while loading, and nothing to call."""

from enum import Enum

from torchvision._absent import names_of
from torchvision.transforms import functional, v2


class InterpolationMode(Enum):
    """Names and values of torchvision's enum."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


functional.InterpolationMode = InterpolationMode

__all__ = ["InterpolationMode", "functional", "v2"]

__getattr__ = names_of(__name__)
