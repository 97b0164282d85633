"""The machine's facts, also where the tools that tell them are missing or odd."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from node.hardware import Accelerator, default_memory_budget, probe


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    probe.cache_clear()
    yield
    probe.cache_clear()


def tools(outputs: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """subprocess.run where only these programs exist."""

    def run(command: tuple[str, ...], **options: Any) -> subprocess.CompletedProcess[str]:
        assert options["timeout"] <= 5
        if command[0] not in outputs:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, outputs[command[0]], "")

    return run


def test_this_machine_has_memory_and_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", tools({}))
    found = probe()
    assert found.memory_bytes == psutil.virtual_memory().total
    assert found.physical_cores >= 1
    assert found.processor


def test_graphics_cards_are_listed_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia = "NVIDIA A100, SXM4, 81920\nodd line\nNVIDIA T4, [N/A]\n"
    amd = "device,VRAM Total Memory (B),VRAM Total Used Memory (B)\ncard0,17163091968,10\n\n"
    monkeypatch.setattr(subprocess, "run", tools({"nvidia-smi": nvidia, "rocm-smi": amd}))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert probe().accelerators == (
        Accelerator("cuda", "NVIDIA A100, SXM4", 81920 << 20),
        Accelerator("rocm", "card0", 17163091968),
    )


def test_apple_silicon_shares_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", tools({"sysctl": "Apple M3\n"}))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    found = probe()
    assert found.processor == "Apple M3"
    assert found.accelerators == (Accelerator("metal", "Apple M3", found.memory_bytes),)


@pytest.mark.parametrize("failure", [subprocess.TimeoutExpired("nvidia-smi", 3), PermissionError("no")])
def test_a_tool_that_hangs_or_fails_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def run(command: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert probe().accelerators == ()


def test_models_get_three_quarters_of_the_memory() -> None:
    assert default_memory_budget(16 << 30) == 12 << 30
