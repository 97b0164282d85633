"""What this machine has: processor, memory, accelerators. Absence of a probe's tool is an answer, not an error."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

_PROBE_S = 3.0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU and its memory in bytes (on Apple silicon that of the machine)."""

    kind: str  # cuda, rocm, metal
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine."""

    system: str
    processor: str
    physical_cores: int
    memory_bytes: int
    accelerators: tuple[Accelerator, ...]


@lru_cache(maxsize=1)
def probe() -> Hardware:
    """Look at the machine, once. Takes at most some seconds, mostly none."""
    memory = psutil.virtual_memory().total
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        physical_cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        memory_bytes=memory,
        accelerators=(*_nvidia(), *_amd(), *_apple(memory)),
    )


def default_memory_budget(memory_bytes: int) -> int:
    """What models may take when nobody says otherwise: three quarters of the machine's memory."""
    return memory_bytes * 3 // 4


def _processor() -> str:
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _nvidia() -> list[Accelerator]:
    found = []
    for line in _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits").splitlines():
        name, _, mib = line.rpartition(",")
        if mib.strip().isdigit():
            found.append(Accelerator("cuda", name.strip(), int(mib) << 20))
    return found


def _amd() -> list[Accelerator]:
    found = []
    for line in _output("rocm-smi", "--showmeminfo", "vram", "--csv").splitlines()[1:]:
        fields = line.split(",")
        if len(fields) >= 2 and fields[1].strip().isdigit():
            found.append(Accelerator("rocm", fields[0].strip(), int(fields[1])))
    return found


def _apple(memory_bytes: int) -> list[Accelerator]:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return [Accelerator("metal", _processor(), memory_bytes)]
    return []


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
