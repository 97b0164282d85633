"""What others put before several servers: nginx and haproxy of Debian, LiteLLM and sglang-router of PyPI.

Nothing is installed on the system: Debian's packages are unpacked into the checkout's environment, the two from PyPI
have an environment of their own there. Where one cannot be had the bench says so and goes on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.harness import Session
from tests.bench.http import free_port
from tests.bench.nodes import MODEL
from tests.bench.rivals import Rival, installed, serving
from tests.support.nodes import RunningNode

_DEBIAN = {
    "nginx": ("nginx",),
    "haproxy": ("haproxy", "liblua5.3-0", "libopentracing1", "libopentracing-c-wrapper0"),
}
_PYPI = "bench-proxies"  # their dependencies do not go with those of the other servers


@contextmanager
def nginx(session: Session, nodes: Sequence[RunningNode]) -> Iterator[Rival | None]:
    """nginx with kept-alive connections to the nodes and no buffering, else as it comes; round-robin."""
    folder = session.data("nginx")
    port = free_port()
    servers = "".join(f"server {_host(node)};" for node in nodes)
    (folder / "logs").mkdir(parents=True)
    (folder / "nginx.conf").write_text(
        f"""daemon off; worker_processes auto; pid nginx.pid; error_log logs/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 100000;
    upstream nodes {{ {servers} keepalive 64; keepalive_requests 100000; }}
    server {{
        listen 127.0.0.1:{port};
        location = /health {{ return 200; }}
        location / {{
            proxy_pass http://nodes; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
            proxy_set_header Host $http_host;
        }}
    }}
}}
"""
    )
    arguments = ["-p", str(folder), "-c", str(folder / "nginx.conf")]
    with _proxy(session, "nginx", _debian(session, "nginx"), arguments, port) as rival:
        yield rival


@contextmanager
def haproxy(session: Session, nodes: Sequence[RunningNode], slots: Sequence[int]) -> Iterator[Rival | None]:
    """haproxy with leastconn, told how many requests each node takes at a time, and queueing the rest itself."""
    folder = session.data("haproxy")
    port = free_port()
    servers = "\n".join(
        f"    server n{number} {_host(node)} maxconn {count}"
        for number, (node, count) in enumerate(zip(nodes, slots, strict=True))
    )
    folder.mkdir(parents=True)
    (folder / "haproxy.cfg").write_text(
        f"""defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout queue 60s
listen nodes
    bind 127.0.0.1:{port}
    balance leastconn
{servers}
"""
    )
    command = _debian(session, "haproxy")
    with _proxy(session, "haproxy leastconn", command, ["-f", str(folder / "haproxy.cfg")], port) as rival:
        yield rival


@contextmanager
def litellm(
    session: Session, nodes: Sequence[RunningNode], *, strategy: str = "simple-shuffle"
) -> Iterator[Rival | None]:
    """LiteLLM's proxy."""
    folder = session.data("litellm")
    port = free_port()
    number = installed(session, "litellm[proxy]", environment=_PYPI)
    folder.mkdir(parents=True)
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{node.url}/v1", "api_key": "none"},
            }
            for node in nodes
        ],
        "router_settings": {"routing_strategy": strategy, "num_retries": 0},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},  # on loopback, for minutes
        "litellm_settings": {"telemetry": False, "drop_params": True},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    program = Path(sys.prefix) / _PYPI / "bin" / "litellm"
    command = None if number is None else [str(program)]
    arguments = ["--config", str(folder / "config.yaml"), "--port", str(port), "--host", "127.0.0.1"]
    name = f"LiteLLM {number}" + ("" if strategy == "simple-shuffle" else f" {strategy}")
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    with _proxy(session, name, command, arguments, port, environment) as rival:
        yield rival


@contextmanager
def sglang_router(session: Session, nodes: Sequence[RunningNode], *, policy: str) -> Iterator[Rival | None]:
    """SGLang's router. It asks its workers for /health, which SGLang has and nodes have not: nginx answers that.

    Its `power_of_two` goes by figures that only SGLang's own servers give; without them it sends all to one node.
    """
    number = installed(session, "sglang-router", environment=_PYPI)
    with ExitStack() as stack:
        before = [stack.enter_context(nginx(session, [node])) for node in nodes]
        urls = [rival.url for rival in before if rival is not None]
        if number is None or len(urls) < len(nodes):
            session.warn("NOT COMPARED with sglang-router: it is not there, or nginx, which it needs here.")
            yield None
            return
        port = free_port()
        command = [str(Path(sys.prefix) / _PYPI / "bin" / "python"), "-m", "sglang_router.launch_router"]
        arguments = ["--host", "127.0.0.1", "--port", str(port), "--policy", policy]
        arguments += ["--prometheus-port", str(free_port()), "--worker-urls", *urls]
        with _proxy(session, f"sglang-router {number} {policy}", command, arguments, port) as rival:
            yield rival


@contextmanager
def _proxy(
    session: Session,
    name: str,
    command: list[str] | None,
    arguments: list[str],
    port: int,
    environment: dict[str, str] | None = None,
) -> Iterator[Rival | None]:
    if command is None:
        yield None
        return
    with serving(session, name, [*command, *arguments], port, environment or {}) as url:
        yield Rival(name, url, {}) if url else None


def _debian(session: Session, program: str) -> list[str] | None:
    """The command of a program, out of the system or of Debian's packages unpacked."""
    if found := shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        return [found]
    root = Path(sys.prefix) / "bench-debian"
    path = root / "usr" / "sbin" / program
    if not path.exists():
        session.tell(f"unpacking Debian's {program} into {root.name}/ of the environment (once)")
        try:
            _unpack(_DEBIAN[program], root)
        except (OSError, subprocess.CalledProcessError) as error:
            session.warn(
                f"NOT COMPARED with {program}: it is not installed, nor to be had as a Debian package ({error})."
            )
            return None
    libraries = root / "usr" / "lib" / f"{platform.machine()}-linux-gnu"
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(path)]


def _unpack(packages: Sequence[str], root: Path) -> None:
    downloads = root / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    download = ["apt-get", "download", *packages]
    if subprocess.run(download, cwd=downloads, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update"], capture_output=True, check=True)  # old lists name what is gone
        subprocess.run(download, cwd=downloads, capture_output=True, check=True)
    for package in downloads.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(root)], capture_output=True, check=True)


def _host(node: RunningNode) -> str:
    return node.url.removeprefix("http://")
