"""Stand-in for torchvision.ops.boxes."""

from torchvision._absent import names_of

__getattr__ = names_of(__name__)
