"""ggml's devices through ctypes, as far as RPC needs them. Source of the semantics: ggml's include/ggml-backend.h."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp as native

from backends.types import LoadFailed

_CPU, _GPU, _INTEGRATED_GPU = 0, 1, 2  # ggml_backend_dev_type

Handle = ctypes.c_void_p


def function(name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
    """A function of ggml's."""
    found: ctypes._NamedFuncPointer = getattr(native.llama_cpp._lib, name)
    found.restype, found.argtypes = result, arguments
    return found


def rpc_function(name: str, result: type | None, *arguments: type) -> ctypes._FuncPointer:
    """A function of ggml's RPC backend. Raises LoadFailed where llama.cpp was built without it."""
    by_name = function("ggml_backend_reg_by_name", Handle, ctypes.c_char_p)
    address_of = function("ggml_backend_reg_get_proc_address", Handle, Handle, ctypes.c_char_p)
    registry = by_name(b"RPC")
    address = address_of(registry, name.encode()) if registry else None
    if not address:
        raise LoadFailed("llama.cpp was built without RPC. `make run` in a source checkout builds it with.")
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def own_devices() -> list[int]:
    """All accelerators, else the CPU."""
    count = function("ggml_backend_dev_count", ctypes.c_size_t)()
    get = function("ggml_backend_dev_get", Handle, ctypes.c_size_t)
    kind_of = function("ggml_backend_dev_type", ctypes.c_int, Handle)
    found = [(kind_of(device), device) for device in (get(index) for index in range(count))]
    accelerators = [device for kind, device in found if kind in (_GPU, _INTEGRATED_GPU)]
    return accelerators or [device for kind, device in found if kind == _CPU][:1]


def named_device(name: str) -> int:
    """The device of that name (CPU, CUDA0, Metal). Raises LoadFailed."""
    device: int | None = function("ggml_backend_dev_by_name", Handle, ctypes.c_char_p)(name.encode())
    if not device:
        count = function("ggml_backend_dev_count", ctypes.c_size_t)()
        get = function("ggml_backend_dev_get", Handle, ctypes.c_size_t)
        known = ", ".join(device_name(get(index)) for index in range(count))
        raise LoadFailed(f"There is no device {name}; there are: {known}.")
    return device


def device_name(device: int) -> str:
    """What ggml calls it."""
    name: bytes = function("ggml_backend_dev_name", ctypes.c_char_p, Handle)(device)
    return name.decode(errors="replace")


def device_memory(device: int) -> tuple[int, int]:
    """Free and all, bytes."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    pointer = ctypes.POINTER(ctypes.c_size_t)
    function("ggml_backend_dev_memory", None, Handle, pointer, pointer)(device, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def remote_devices(endpoint: str) -> list[int]:
    """The devices of the RPC server at `endpoint`. Aborts the process where it is not there: probe it before."""
    registry = rpc_function("ggml_backend_rpc_add_server", Handle, ctypes.c_char_p)(endpoint.encode())
    if not registry:
        raise LoadFailed(f"The RPC server at {endpoint} has no devices.")
    function("ggml_backend_register", None, Handle)(registry)
    count = function("ggml_backend_reg_dev_count", ctypes.c_size_t, Handle)(registry)
    get = function("ggml_backend_reg_dev_get", Handle, Handle, ctypes.c_size_t)
    return [get(registry, index) for index in range(count)]


def device_array(devices: Sequence[int]) -> ctypes.Array[Handle]:
    """As C wants it: ended by a null."""
    return (Handle * (len(devices) + 1))(*devices, None)
