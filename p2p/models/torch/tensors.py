"""The tensors of a module: as numpy sees them, as bytes without their numbers, and as copies on another device.

a tensor on the CPU        numpy has a view of the same memory
a tensor elsewhere         numpy has a copy, read anew whenever it is asked for, and written back by `send_back`
a module for workers       the module, pickled; in the place of each storage that is trained stands its size
`there(module, device)`    a module like it on that device, for a gradient to train; `level` copies its numbers back
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p import parcel

DTYPES = (torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
SMALL_DTYPES = (torch.float16, torch.bfloat16)
PLAIN = (Tensor, nn.Parameter, nn.Buffer) if hasattr(nn, "Buffer") else (Tensor, nn.Parameter)

_copies: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Array]] = WeakKeyDictionary()
"""Of the user's modules on another device, the arrays that numpy has of them."""
_left_out: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""Names of the tensors whose numbers do not travel with the module."""
_elsewhere: WeakKeyDictionary[nn.Module, tuple[str, nn.Module]] = WeakKeyDictionary()
"""By module, another device and the like of it there."""


# ------------------------------------------------------------------------------------------------- as named arrays


def names(module: nn.Module) -> list[str]:
    """The tensors to train, by their names in the module's state, those with the same memory once.

    Raises:
        UsageError: a tensor that cannot be trained here.
    """
    for name, part in module.named_modules():
        _check_module(name, part)
    tensors: dict[str, Tensor] = dict(_state(module))
    found: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        _check(name, tensor)
        if tensor.dtype != torch.bool:
            place = (str(tensor.device), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            found.setdefault(place if tensor.numel() else (name,), name)
    if not all(map(is_here, tensors.values())):
        _copies.setdefault(module, {})
    return list(found.values())


def find(module: nn.Module, key: tuple[str, ...]) -> Any:
    """The tensor as numpy sees it; the tensor itself if it does not, None if there is none."""
    tensor = _tensor(module, key)
    if tensor is None or isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        return tensor
    if is_here(tensor):
        try:
            return tensor.detach().numpy()
        except (RuntimeError, TypeError):  # a dtype or a layout that numpy does not have
            return tensor
    kept = _copies.get(module)
    if kept is None:
        return tensor
    numbers = tensor.detach().cpu().numpy()
    if key not in kept or kept[key].shape != numbers.shape or kept[key].dtype != numbers.dtype:
        kept[key] = numbers.copy()
    else:
        np.copyto(kept[key], numbers)
    return kept[key]


def put(module: nn.Module, key: tuple[str, ...], array: Array) -> None:
    """Have the tensor hold the numbers of `array`; it stays the same object, to which an optimizer holds on."""
    tensor = _tensor(module, key)
    if tensor is None:
        raise UsageError(f"the module has no {'.'.join(key)!r} any more")
    if is_here(tensor):
        tensor.data = torch.from_numpy(array)
    else:
        _copies.setdefault(module, {})[key] = array
        send_back(module)


def send_back(module: nn.Module) -> None:
    """Copy what numpy has of a module on another device to there."""
    with torch.no_grad():
        for key, array in _copies.get(module, {}).items():
            tensor = _tensor(module, key)
            if tensor is not None:
                tensor.copy_(torch.from_numpy(array))


def rule(module: nn.Module, key: tuple[str, ...]) -> str | None:
    """How updates of a tensor add up, if not like those of the parameters."""
    tensor = _tensor(module, key)
    if tensor is None or isinstance(tensor, nn.Parameter):
        return None
    return "mean" if tensor.dtype.is_floating_point else "sum"


def is_here(tensor: Tensor) -> bool:
    """Whether numpy sees its memory."""
    return bool(tensor.is_cpu)


def _tensor(module: nn.Module, key: tuple[str, ...]) -> Tensor | None:
    owner: nn.Module | None = module
    for name in key[:-1]:
        owner = owner._modules.get(name) if owner is not None else None
    if owner is None:
        return None
    found = owner._parameters.get(key[-1])
    return owner._buffers.get(key[-1]) if found is None else found


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the buffers that are saved with the module."""
    yield from module.named_parameters()
    saved = set(module.state_dict(keep_vars=True))
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer


def _check_module(name: str, module: nn.Module) -> None:
    """Raise `UsageError` for what torch does not pickle."""
    where = f"{name!r} of the module" if name else "the module"
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(f"{where} is compiled by torch.jit, expected the one that it was made of, or torch.compile")
    if parametrize.is_parametrized(module):
        raise UsageError(
            f"{where} is parametrized, and torch does not pickle such modules: expected weight_norm or spectral_norm "
            "of torch.nn.utils in the place of those of torch.nn.utils.parametrizations"
        )


def _check(name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        raise UsageError(
            f"{name!r} of the module has no shape yet: call the module with some rows before it is trained"
        )
    if tensor.dtype in SMALL_DTYPES:
        raise UsageError(
            f"{name!r} of the module is {tensor.dtype}, in which small updates of other peers round away: expected "
            "torch.float32, by module.float(); torch.autocast within the module calculates in fewer bits all the same"
        )
    if type(tensor) not in PLAIN or tensor.layout != torch.strided or tensor.is_meta:
        kind = "on no device" if tensor.is_meta else f"a {type(tensor).__name__}, {tensor.layout}"
        raise UsageError(f"{name!r} of the module is {kind}, expected a plain dense tensor with numbers")
    if tensor.dtype not in (*DTYPES, torch.bool):
        kinds = ", ".join(map(str, DTYPES))
        raise UsageError(f"{name!r} of the module is {tensor.dtype}, expected one of {kinds}")


# ---------------------------------------------------------------------------------------- on its way to another process


def leave_out(module: nn.Module, names: list[str]) -> None:
    """The numbers of these tensors travel by themselves."""
    _left_out[module] = names


def without_numbers(module: nn.Module) -> bytes:
    """The module, for `opened`; tensors that are left out have no numbers, and all are on the CPU."""
    left_out = _left_out.get(module)
    keys = [tuple(name.split(".")) for name in (names(module) if left_out is None else left_out)]
    tensors = [tensor for tensor in (_tensor(module, key) for key in keys) if tensor is not None]
    return parcel.dumps(module, partial(_Pickler, tensors=tensors))


def opened(sent: bytes) -> nn.Module:
    """The module of `without_numbers`, of the user's own class; what was left out is zero."""
    module: nn.Module = parcel.loads(sent)
    return module


class _Zeros:
    """A storage, of which only the size travels; tensors that shared one share one again."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._storage: Any = None

    @property
    def storage(self) -> Any:
        if self._storage is None:
            self._storage = torch.zeros(self.nbytes, dtype=torch.uint8).untyped_storage()
        return self._storage


class _Pickler(parcel.Pickler):
    def __init__(self, file: io.BytesIO, tensors: Iterable[Tensor]) -> None:
        super().__init__(file)
        self._zeros: dict[tuple[str, int], _Zeros] = {}
        for tensor in tensors:
            self._zeros.setdefault(_place(tensor), _Zeros(tensor.untyped_storage().nbytes()))

    def reducer_override(self, value: Any) -> Any:
        """How to write `value`; pickle itself sees to it that each object is written once."""
        if type(value) not in PLAIN or value.layout != torch.strided:
            return super().reducer_override(value)
        zeros = self._zeros.get(_place(value))
        more = (isinstance(value, nn.Parameter), value.requires_grad and value.is_leaf, dict(value.__dict__))
        if zeros is not None:
            view = (value.dtype, value.storage_offset(), tuple(value.shape), value.stride())
            return _view, (zeros, *view, *more)
        if not value.is_cpu and not value.is_meta:
            return _like, (value.detach().cpu(), *more)
        return super().reducer_override(value)


def _place(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _view(zeros: _Zeros, dtype: Any, offset: int, shape: Any, strides: Any, *more: Any) -> Tensor:
    """A tensor in the memory of `zeros`."""
    return _like(torch.empty(0, dtype=dtype).set_(zeros.storage, offset, shape, strides), *more)


def _like(tensor: Tensor, is_parameter: bool, requires_grad: bool, attributes: dict[str, Any]) -> Tensor:
    made = nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)
    made.__dict__.update(attributes)
    return made


# ------------------------------------------------------------------------------------------------ on another device


def device_of(module: nn.Module) -> str:
    """Where the module is; `UsageError` if it is in several places."""
    devices = sorted({str(tensor.device) for _, tensor in _state(module)})
    if len(devices) > 1:
        raise UsageError(
            f"the module is on {', '.join(devices)}, expected one device: each peer trains a whole replica of it"
        )
    return devices[0] if devices else "cpu"


def there(module: nn.Module, device: str) -> nn.Module:
    """`module` itself if it is there, else one like it on that device, with its numbers; the same one each time.

    Raises:
        UsageError: this process has no such device.
    """
    if device == "cpu":
        return module
    where, other = _elsewhere.get(module, ("", module))
    if where != device:
        other = copy.deepcopy(module).to(_checked(device))
        _elsewhere[module] = device, other
    level(module, other)
    return other


def level(source: nn.Module, target: nn.Module) -> None:
    """Copy the numbers of one module into another like it."""
    if source is not target:
        with torch.no_grad():
            for (_, mine), (_, theirs) in zip(_state(source), _state(target), strict=True):
                theirs.copy_(mine)


def _checked(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"the module is to be trained on {device!r}, and this process has no such device ({words}): expected one "
            "wherever peers train, or device='cpu', on which workers have their replicas in any case"
        ) from None
    return device
