"""For which accelerator llama.cpp is built here. Pure, but for `probe`."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

KINDS = ("cuda", "rocm", "metal", "cpu")

_FLAGS = {
    "cuda": ("-DGGML_CUDA=ON",),
    "rocm": ("-DGGML_HIP=ON",),
    "metal": ("-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON"),
    "cpu": ("-DGGML_METAL=OFF",),
}


@dataclass(frozen=True)
class Toolchains:
    """What could be built with what is installed, and what could be used."""

    nvcc: str | None
    hipcc: str | None
    nvidia_gpu: bool
    amd_gpu: bool
    apple_silicon: bool


def probe() -> Toolchains:
    """What this machine has."""
    cuda = Path("/usr/local/cuda/bin/nvcc")
    rocm = Path("/opt/rocm/bin/hipcc")
    return Toolchains(
        nvcc=shutil.which("nvcc") or (str(cuda) if cuda.exists() else None),
        hipcc=shutil.which("hipcc") or (str(rocm) if rocm.exists() else None),
        nvidia_gpu=Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists(),  # the latter: Windows' Linux
        amd_gpu=Path("/dev/kfd").exists(),
        apple_silicon=platform.system() == "Darwin" and platform.machine() == "arm64",
    )


def choose(found: Toolchains, wanted: str | None) -> str:
    """The accelerator to build for; `wanted` (MESH_ACCELERATOR) overrides. Raises ValueError for an unknown one.

    A toolkit alone is not enough: libraries for CUDA need the driver's libcuda to be loaded at all, so a machine that
    has the compiler without a GPU gets libraries that run there.
    """
    if wanted:
        if wanted not in KINDS:
            raise ValueError(f"MESH_ACCELERATOR is {wanted}; it must be one of {', '.join(KINDS)}.")
        return wanted
    if found.nvcc and found.nvidia_gpu:
        return "cuda"
    if found.hipcc and found.amd_gpu:
        return "rocm"
    return "metal" if found.apple_silicon else "cpu"


def unused(found: Toolchains) -> str | None:
    """One line about a GPU that `choose` leaves idle because its compiler is missing."""
    if found.nvidia_gpu and not found.nvcc:
        return "There is an NVIDIA GPU but no nvcc: building for the CPU. Install the CUDA toolkit and run again."
    if found.amd_gpu and not found.hipcc:
        return "There is an AMD GPU but no hipcc: building for the CPU. Install ROCm and run again."
    return None


def flags(kind: str, found: Toolchains) -> list[str]:
    """CMake definitions for `kind`."""
    extra = [f"-DCMAKE_CUDA_COMPILER={found.nvcc}"] if kind == "cuda" and found.nvcc else []
    return [*_FLAGS[kind], *extra]
