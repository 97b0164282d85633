"""llama.cpp for this machine: what is built, whether that is done already, and the building.

The source is the one that llama-cpp-python's source distribution brings, so that bindings and libraries agree.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.steps import key_of, run

_CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_RPC=ON",
    "-DGGML_NATIVE=ON",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_MTMD=ON",  # what makes images part of a prompt
    "-DMTMD_VIDEO=OFF",  # it would run whatever ffmpeg is on the PATH
)
_TARGETS = ("llama", "ggml-rpc", "mtmd")
_ADVICE = (
    "If memory ran out: CMAKE_BUILD_PARALLEL_LEVEL=1 make run. If an accelerator's compiler fails: "
    "MESH_ACCELERATOR=cpu make run."
)


@dataclass(frozen=True)
class Recipe:
    """All that a build depends on. Another value of any field is another build."""

    version: str  # of llama-cpp-python
    accelerator: str
    flags: tuple[str, ...]
    processor: str  # GGML_NATIVE: what is built for one processor may not run on another

    @property
    def key(self) -> str:
        """A digest of the whole recipe."""
        return key_of(json.dumps(asdict(self), sort_keys=True))


def recipe(version: str, accelerator: str, flags: list[str], processor: str) -> Recipe:
    """The build for an accelerator, `flags` being CMake definitions that it needs."""
    return Recipe(version, accelerator, (*_CMAKE, *flags), processor)


def is_built(libraries: Path, wanted: Recipe) -> bool:
    """Whether the folder holds what the recipe makes. Its build.json is written last, so it is there whole or not."""
    try:
        built = json.loads((libraries / "build.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(built, dict) and built.get("key") == wanted.key


def build(source: Path, work: Path, libraries: Path, wanted: Recipe, *, tools: Path, log: Path) -> None:
    """Build in `work`, then put the libraries and their build.json at `libraries`. Raises StepError.

    `tools`: the folder of cmake and ninja. A build that was interrupted goes on where it stopped.
    """
    folder = work / wanted.key[:12]
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
    cmake = str(tools / "cmake")
    # So that the libraries find one another wherever the folder lies.
    rpath = "@loader_path" if platform.system() == "Darwin" else "$ORIGIN"
    place = ["-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", f"-DCMAKE_INSTALL_RPATH={rpath}"]
    configure = [cmake, "-S", str(source), "-B", str(folder), "-G", "Ninja", *wanted.flags, *place]
    run(f"configuring llama.cpp for {wanted.accelerator}", configure, log=log, env=env, advice=_ADVICE)
    make = [cmake, "--build", str(folder), "--target", *_TARGETS]
    run(f"building llama.cpp for {wanted.accelerator}", make, log=log, env=env, advice=_ADVICE)
    install(folder / "bin", libraries, wanted)
    shutil.rmtree(work, ignore_errors=True)


def install(built: Path, libraries: Path, wanted: Recipe) -> None:
    """Put what was built at `libraries`, in place of what was there."""
    fresh = libraries.with_name(f"{libraries.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for library in sorted(built.iterdir()):
        if ".so" in library.name or library.suffix == ".dylib":
            shutil.copy2(library, fresh / library.name, follow_symlinks=False)
    (fresh / "build.json").write_text(json.dumps({"key": wanted.key, **asdict(wanted)}, indent=1) + "\n")
    shutil.rmtree(libraries, ignore_errors=True)
    fresh.rename(libraries)


def processor() -> str:
    """This machine's processor, as far as a native build depends on it."""
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        detail = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    else:
        try:
            detail = cpuinfo_identity(Path("/proc/cpuinfo").read_text(errors="replace"))
        except OSError:
            detail = platform.processor()
    return f"{platform.system()} {platform.machine()} {detail}"


def cpuinfo_identity(text: str) -> str:
    """What Linux's /proc/cpuinfo says about kind and features, whatever the number of cores."""
    named = ("model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    facts: list[str] = []
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in named and value.strip() not in facts:
            facts.append(value.strip())
    return " | ".join(facts)
