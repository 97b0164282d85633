"""How fast a device decodes: bytes of weights a second through one matrix times one vector, measured on the spot.

A step of decoding reads every weight once, so this is what its time goes by; a plan needs it before any model has been
loaded there.
"""

from __future__ import annotations

import ctypes
import time

from backends.llama_cpp.rpc.devices import Handle, function

_F32, _Q8_0 = 0, 8  # ggml_type
_COLUMNS, _ROWS = 4096, 8192
_WEIGHT_BYTES = _COLUMNS * _ROWS * 34 // 32  # 36 MB: more than caches hold
_RUNS = 12  # of which the best counts: the others had company


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", Handle), ("no_alloc", ctypes.c_bool))


def measure(device: int, threads: int) -> float:
    """Bytes a second; 0 where it could not be measured. Takes some 50 ms on a CPU."""
    backend = function("ggml_backend_dev_init", Handle, Handle, ctypes.c_char_p)(device, None)
    if not backend:
        return 0.0
    context = function("ggml_init", Handle, _InitParams)(_InitParams(1 << 20, None, True))
    try:
        _set_threads(device, backend, threads)
        tensor = function("ggml_new_tensor_2d", Handle, Handle, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        product = function("ggml_mul_mat", Handle, Handle, Handle, Handle)(
            context, tensor(context, _Q8_0, _COLUMNS, _ROWS), tensor(context, _F32, _COLUMNS, 1)
        )
        graph = function("ggml_new_graph", Handle, Handle)(context)
        function("ggml_build_forward_expand", None, Handle, Handle)(graph, product)
        buffer = function("ggml_backend_alloc_ctx_tensors", Handle, Handle, Handle)(context, backend)
        if not buffer:
            return 0.0
        function("ggml_backend_buffer_clear", None, Handle, ctypes.c_uint8)(buffer, 0)
        compute = function("ggml_backend_graph_compute", ctypes.c_int, Handle, Handle)
        compute(backend, graph)
        best_s = min(_timed(compute, backend, graph) for _ in range(_RUNS))
        function("ggml_backend_buffer_free", None, Handle)(buffer)
        return _WEIGHT_BYTES / best_s
    finally:
        function("ggml_free", None, Handle)(context)
        function("ggml_backend_free", None, Handle)(backend)


def _timed(compute: ctypes._NamedFuncPointer, backend: int, graph: int) -> float:
    started = time.perf_counter()
    compute(backend, graph)
    return max(1e-6, time.perf_counter() - started)


def _set_threads(device: int, backend: int, threads: int) -> None:
    registry = function("ggml_backend_dev_backend_reg", Handle, Handle)(device)
    address = function("ggml_backend_reg_get_proc_address", Handle, Handle, ctypes.c_char_p)(
        registry, b"ggml_backend_set_n_threads"
    )
    if address:
        ctypes.CFUNCTYPE(None, Handle, ctypes.c_int)(address)(backend, threads)
