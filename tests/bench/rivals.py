"""Other servers of the same model: put into an environment of their own, once, and started as processes.

xllamacpp brings llama.cpp's own server, built portably by its makers; llama-cpp-python's server runs here on the
libraries that the set-up has built for this machine, the node's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx

from backends.llama_cpp import native_libraries
from tests.bench.harness import BenchError, Session
from tests.bench.http import free_port

START_S = 60.0


@dataclass(frozen=True, slots=True)
class Model:
    """The same model, opened the same way by all."""

    path: Path
    context_tokens: int  # of one sequence
    slots: int
    threads: int


@dataclass(frozen=True, slots=True)
class Rival:
    """A server to compare with, and what its requests need so that it generates as many tokens."""

    name: str
    url: str
    fields: dict[str, object]


_OWN = "bench"


def _python(environment: str = _OWN) -> Path:
    return Path(sys.prefix) / environment / "bin" / "python"


def installed(session: Session, requirement: str, *options: str, environment: str = _OWN) -> str | None:
    """Put it into an environment unless it is there; None when it could not be, after saying so loudly."""
    package = requirement.partition("[")[0].partition("=")[0]
    python = _python(environment)
    if found := _version(package, python):
        return found
    session.tell(f"installing {requirement} into {environment}/ of the environment (once)")
    try:
        if not python.exists():
            path = str(Path(sys.prefix) / environment)
            subprocess.run([sys.executable, "-m", "venv", path], check=True, capture_output=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
        subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
        session.warn(f"NOT COMPARED with {package}: it cannot be installed ({lines[-1] if lines else error}).")
        return None
    return _version(package, python)


def _version(package: str, python: Path) -> str | None:
    if not python.exists():
        return None
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    found = subprocess.run([str(python), "-c", code, package], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


@contextmanager
def xllamacpp(session: Session, model: Model) -> Iterator[Rival | None]:
    """llama.cpp's own server, from the package xllamacpp."""
    number = installed(session, "xllamacpp")
    if number is None:
        yield None
        return
    script = Path(__file__).with_name("xllamacpp_server.py")
    port = free_port()
    numbers = (model.slots, model.context_tokens, model.threads, port)
    command = [str(_python()), str(script), str(model.path), *map(str, numbers)]
    with serving(session, f"xllamacpp {number}", command, port, {}) as url:
        yield Rival(f"xllamacpp {number}", url, {"ignore_eos": True}) if url else None


@contextmanager
def llama_cpp_python(session: Session, model: Model) -> Iterator[Rival | None]:
    """llama-cpp-python's own server. It runs one sequence at a time, whatever the number of clients."""
    wanted = version("llama-cpp-python")
    number = installed(session, f"llama-cpp-python[server]=={wanted}", "--config-settings=cmake.define.LLAMA_BUILD=OFF")
    libraries = native_libraries()
    if number is None or libraries is None:
        if number is not None:
            session.warn("NOT COMPARED with llama-cpp-python: the set-up has built no libraries for it.")
        yield None
        return
    port = free_port()
    command = [str(_python()), "-m", "llama_cpp.server", "--model", str(model.path), "--port", str(port)]
    command += ["--n_ctx", str(model.context_tokens), "--n_threads", str(model.threads), "--verbose", "false"]
    # By default a second request ends the first one's answer.
    command += ["--n_threads_batch", str(model.threads), "--interrupt_requests", "false"]
    # It has no ignore_eos: forbid SmolLM2's two ends instead.
    fields = {"logit_bias": {"0": -100, "2": -100}}
    with serving(session, f"llama-cpp-python {number}", command, port, {"LLAMA_CPP_LIB_PATH": str(libraries)}) as url:
        yield Rival(f"llama-cpp-python {number}", url, dict(fields)) if url else None


@contextmanager
def serving(
    session: Session, name: str, command: list[str], port: int, environment: dict[str, str]
) -> Iterator[str | None]:
    """Start a server and wait until it answers; where, or None when it does not start, after saying so loudly."""
    log = session.folder / f"{name.split()[0]}-{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
        try:
            url = f"http://127.0.0.1:{port}"
            try:
                _wait_for(url, alive=lambda: process.poll() is None)
            except BenchError:
                last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                session.warn(f"NOT COMPARED with {name}: its server does not start ({last}).")
                yield None
            else:
                yield url
        finally:
            process.kill()
            process.wait()


def _wait_for(url: str, *, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while alive() and time.monotonic() < deadline:
            try:
                if client.get(f"{url}/v1/models").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
    raise BenchError(f"Nothing answers at {url}.")
