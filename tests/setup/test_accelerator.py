"""For which accelerator llama.cpp is built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.accelerator import KINDS, Toolchains, choose, flags, probe, unused

NOTHING = Toolchains(nvcc=None, hipcc=None, nvidia_gpu=False, amd_gpu=False, apple_silicon=False)
CUDA = replace(NOTHING, nvcc="/usr/local/cuda/bin/nvcc", nvidia_gpu=True)
ROCM = replace(NOTHING, hipcc="/opt/rocm/bin/hipcc", amd_gpu=True)


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (NOTHING, "cpu"),
        (CUDA, "cuda"),
        (ROCM, "rocm"),
        (replace(NOTHING, apple_silicon=True), "metal"),
        (replace(CUDA, hipcc="/opt/rocm/bin/hipcc", amd_gpu=True), "cuda"),
        (replace(CUDA, nvidia_gpu=False), "cpu"),  # its libraries could not even be loaded
        (replace(ROCM, amd_gpu=False), "cpu"),
        (replace(CUDA, nvcc=None), "cpu"),
        (replace(ROCM, hipcc=None), "cpu"),
    ],
)
def test_what_is_found_decides(found: Toolchains, kind: str) -> None:
    assert choose(found, None) == kind
    assert choose(found, "") == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_person_decides_before_it(kind: str) -> None:
    assert choose(NOTHING, kind) == kind
    assert choose(CUDA, kind) == kind


def test_an_unknown_one_is_named() -> None:
    with pytest.raises(ValueError, match="MESH_ACCELERATOR is vulkan; it must be one of cuda, rocm, metal, cpu"):
        choose(NOTHING, "vulkan")


@pytest.mark.parametrize("kind", KINDS)
def test_each_has_its_flags(kind: str) -> None:
    made = flags(kind, NOTHING)
    assert made
    assert all(flag.startswith("-DGGML_") for flag in made)


def test_the_compiler_that_was_found_is_the_one_that_is_used() -> None:
    assert f"-DCMAKE_CUDA_COMPILER={CUDA.nvcc}" in flags("cuda", CUDA)
    assert not any("CUDA_COMPILER" in flag for flag in flags("cpu", CUDA))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (NOTHING, None),
        (CUDA, None),
        (replace(CUDA, nvcc=None), "NVIDIA GPU but no nvcc"),
        (replace(ROCM, hipcc=None), "AMD GPU but no hipcc"),
    ],
)
def test_a_gpu_that_stays_idle_is_mentioned(found: Toolchains, told: str | None) -> None:
    said = unused(found)
    assert (said is None) == (told is None)
    assert told is None or told in (said or "")


def test_this_machine_has_an_answer() -> None:
    assert choose(probe(), None) in KINDS
