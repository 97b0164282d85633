"""Makes `.venv` ready: pinned packages, llama.cpp built for this machine, the embedded model, this project;
and builds the dashboard.

Run by `make`, as `python -m scripts.setup [--dev] [--mlx]`. A second run finds everything done and takes well under a
second.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tarfile
from pathlib import Path

from scripts import accelerator, dashboard, native
from scripts.prerequisites import look, missing, needed
from scripts.steps import Stamps, StepError, key_of, run

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements"
LOG = VENV / "setup.log"
LIBRARIES = VENV / "lib" / "mesh-native"  # where backends/llama_cpp looks, below sys.prefix
MLX = VENV / "mlx"  # where backends/mlx looks, below sys.prefix

_PIP_ADVICE = "Is the package registry reachable? Run the same command again to go on."
_INTERRUPTED = 130  # what a shell says of a command ended by Ctrl-C


def main() -> int:
    """Do what is not done yet; the exit status."""
    parser = argparse.ArgumentParser(prog="setup", description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also what `make test` and `make check` need")
    parser.add_argument("--mlx", action="store_true", help="also the environment of the mlx backend, where MLX runs")
    options = parser.parse_args()
    if lines := missing(look(), needed((REQUIREMENTS / "runtime.txt").read_text())):
        print("Before anything can be set up:\n  " + "\n  ".join(lines), file=sys.stderr)
        return 1
    try:
        found = accelerator.probe()
        wanted = os.environ.get("MESH_ACCELERATOR")
        kind = accelerator.choose(found, wanted)
        pin = (REQUIREMENTS / "llama-cpp.txt").read_text()
        recipe = native.recipe(version_of(pin), kind, accelerator.flags(kind, found), native.processor())
        if not wanted and not native.is_built(LIBRARIES, recipe) and (hint := accelerator.unused(found)):
            print(hint, file=sys.stderr)
        _set_up(recipe, dev=options.dev, mlx=options.mlx)
    except (StepError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return _INTERRUPTED
    return 0


def version_of(pin: str) -> str:
    """The version in a requirement `name==version \\ --hash=...`."""
    return pin.partition("==")[2].split()[0]


def _set_up(recipe: native.Recipe, *, dev: bool, mlx: bool) -> None:
    _environment()
    stamps = Stamps(VENV / "setup.json")

    def packages(title: str, name: str, *options: str) -> None:
        file = REQUIREMENTS / f"{name}.txt"
        key = key_of(file)
        if not stamps.fresh(name, key):
            _pip(title, "install", "--require-hashes", *options, "-r", str(file))
            stamps.note(name, key)

    packages("installing build tools", "build")
    packages("installing packages", "runtime")
    _drop_old_stubs()
    packages("installing the embedded model", "model", "--no-deps")
    if dev:
        packages("installing development tools", "dev")
    _llama_cpp(stamps, recipe)
    dashboard.build(stamps, VENV, LOG)
    project = key_of(ROOT / "pyproject.toml")
    if not stamps.fresh("project", project):
        _pip("installing mesh", "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
        stamps.note("project", project)
    if mlx and (sys.platform == "linux" or (sys.platform == "darwin" and platform.machine() == "arm64")):
        _mlx(stamps)


def _mlx(stamps: Stamps) -> None:
    """MLX and what it brings, beside the node's own packages: the two need not agree about versions."""
    pinned = REQUIREMENTS / "mlx.txt"
    key = key_of(pinned)
    python = MLX / "bin" / "python"
    if stamps.fresh("mlx", key) and python.exists():
        return
    shutil.rmtree(MLX, ignore_errors=True)
    run("making an environment for MLX", [str(VENV / "bin" / "python"), "-m", "venv", str(MLX)], log=LOG)
    _pip("installing MLX", "install", "--require-hashes", "-r", str(pinned), python=python)
    [packages] = (MLX / "lib").glob("python*/site-packages")
    (packages / "mesh.pth").write_text(f"{ROOT}\n")  # its workers run this project's code
    stamps.note("mlx", key)


def _environment() -> None:
    """An environment of this Python's version, at this very path: the scripts in it hold the path."""
    # Not sys.executable: with `.venv` activated that lies in what may have to be replaced.
    base = str(getattr(sys, "_base_executable", sys.executable))
    key = key_of(f"{sys.version_info[:2]}", str(VENV))
    if Stamps(VENV / "setup.json").fresh("venv", key) and (VENV / "bin" / "python").exists():
        return
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    run("making .venv", [base, "-m", "venv", str(VENV)], log=LOG)
    Stamps(VENV / "setup.json").note("venv", key)


def _drop_old_stubs() -> None:
    """trio-typing, which py-libp2p needs, brings stubs of an old trio, which mypy would prefer to trio's own types."""
    for name in ("trio-stubs", "outcome-stubs", "async_generator-stubs"):
        for folder in (VENV / "lib").glob(f"python*/site-packages/{name}"):
            shutil.rmtree(folder)


def _llama_cpp(stamps: Stamps, recipe: native.Recipe) -> None:
    """The bindings, and the libraries from the llama.cpp that their source distribution brings.

    Built apart from each other: the bindings take seconds, and only the libraries depend on the machine.
    """
    pinned = REQUIREMENTS / "llama-cpp.txt"
    bindings = key_of(pinned)
    has_bindings, has_libraries = stamps.fresh("bindings", bindings), native.is_built(LIBRARIES, recipe)
    if has_bindings and has_libraries:
        return
    source = _source_distribution(pinned)
    if not has_bindings:
        without = "--config-settings=cmake.define.LLAMA_BUILD=OFF"
        _pip("installing llama-cpp-python", "install", "--no-deps", "--no-build-isolation", without, str(source))
        stamps.note("bindings", bindings)
    if not has_libraries:
        llama_cpp = source / "vendor" / "llama.cpp"
        native.build(llama_cpp, VENV / "build", LIBRARIES, recipe, tools=VENV / "bin", log=LOG)
    shutil.rmtree(VENV / "src", ignore_errors=True)


def _source_distribution(pinned: Path) -> Path:
    """The unpacked source distribution, its hash checked by pip."""
    folder = VENV / "src"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--require-hashes"]
    _pip("fetching llama-cpp-python", "download", *options, "--dest", str(folder), "-r", str(pinned))
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:  # Python before 3.11.4; the archive's hash has been checked
            tar.extractall(folder)
    archive.unlink()
    return next(path for path in folder.iterdir() if path.is_dir())


def _pip(title: str, action: str, *arguments: str, python: Path = VENV / "bin" / "python") -> None:
    pip = [str(python), "-m", "pip", action, "--disable-pip-version-check", "--no-input"]
    run(title, [*pip, *arguments], log=LOG, advice=_PIP_ADVICE)


if __name__ == "__main__":
    sys.exit(main())
