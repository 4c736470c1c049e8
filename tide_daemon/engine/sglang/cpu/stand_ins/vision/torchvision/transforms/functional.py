"""Stand-in for torchvision.transforms.functional."""

from torchvision._absent import names_of

__getattr__ = names_of(__name__)
