"""A device that is not there: CPU tensors that say they are on "meta" and refuse to be mixed with the host's.

What runs here with every value right, and fails where a tensor was forgotten on the host, is what would run on a GPU as
far as devices go. Rules as on CUDA: a host tensor without dimensions is a number and may be mixed; indices may be on
the host; only a copy crosses over.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

DEVICE = torch.device("meta")
_CROSSES = {"aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense"}
_NO_INDICES = {"aten::index": (0,), "aten::index_put_": (0, 2), "aten::_index_put_impl_": (0, 2)}
"""Arguments other than the indices, which may be on the host."""


class There(Tensor):
    """A tensor on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        made: There = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """Makes what is created on the device in the block."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors: list[Tensor] = []
    tree_map_only(Tensor, tensors.append, (args, kwargs))
    name = func._schema.name
    there = any(isinstance(tensor, There) for tensor in tensors)
    if there and name not in _CROSSES:
        looked_at = [args[place] for place in _NO_INDICES[name]] if name in _NO_INDICES else tensors
        if any(not isinstance(tensor, There) and tensor.ndim for tensor in looked_at):
            raise RuntimeError(f"{name}: a tensor is on the host and another on the device")
    device = kwargs.get("device")
    ends_there = there if device is None else torch.device(device) == DEVICE
    inner = {
        key: torch.device("cpu") if key == "device" and value is not None else value for key, value in kwargs.items()
    }
    result = func(*_held(args), **_held(inner))
    if result is None or name == "aten::_local_scalar_dense" or not ends_there:
        return result
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    return tree_map(lambda one: There(one) if isinstance(one, Tensor) and not isinstance(one, There) else one, result)


def _held(values: Any) -> Any:
    return tree_map_only(There, lambda tensor: tensor.held, values)
