"""The import-only stand-in for torchvision: everything can be imported, nothing can be called."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torchvision.io", "decode_jpeg"),
        ("torchvision.ops.boxes", "batched_nms"),
        ("torchvision.transforms", "Compose"),
        ("torchvision.transforms.functional", "pil_to_tensor"),
        ("torchvision.transforms.v2.functional", "resize"),
    ],
)
def test_any_name_imports_and_none_can_be_called(module: str, name: str) -> None:
    """The error says what is missing; a text model never gets there."""
    attribute = getattr(importlib.import_module(module), name)
    with pytest.raises(NotImplementedError, match=rf"{name}: image models need the real torchvision"):
        attribute("picture")


def test_interpolation_modes_are_torchvisions() -> None:
    """transformers builds a table from them while loading."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import InterpolationMode as SameMode

    assert SameMode is InterpolationMode
    assert [mode.value for mode in InterpolationMode] == [
        "nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos",
    ]  # fmt: skip


def test_private_names_are_absent() -> None:
    """Probes by hasattr and the import machinery get the answer they expect."""
    import torchvision.io

    assert not hasattr(torchvision.io, "__wrapped__")
    assert not hasattr(torchvision.io, "_private")
