"""A whole node in its own process: found by commands, stopped in order."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trio
from pydantic import SecretStr
from typer.testing import CliRunner

from mesh.identity import Identity
from mesh.records import sign_record
from mesh.remembered import Remembered
from mesh.roster import unread_record
from mesh.token import JoinToken
from node.cli.app import app
from node.cli.console import CommandError
from node.config import Settings, read_settings
from node.datadir import RECORD_FILE, running_url
from node.runtime import StartError, run_node
from node.swarmdir import SwarmDir
from tests.support.nodes import END_S, RunningNode, running_node, write_model

ANSWER_TOKENS = 60


@pytest.fixture
def slow_node(tmp_path: Path) -> Iterator[RunningNode]:
    """A node whose answers take about a second."""
    write_model(tmp_path, "slow", backend="fake", engine={"decode_tokens_per_s": 50, "answer_tokens": ANSWER_TOKENS})
    with running_node(tmp_path) as node:
        yield node


def command(*arguments: str) -> Any:
    """The JSON that a command prints; its CommandError is raised."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def stream(http: httpx.Client) -> Any:
    return http.stream(
        "POST", "/v1/completions", json={"model": "slow", "prompt": "hi", "max_tokens": ANSWER_TOKENS, "stream": True}
    )


def wait_until_not_ready(http: httpx.Client) -> None:
    while http.get("/readyz").status_code == 200:
        pass


def test_commands_find_the_node_by_its_data_folder(fake_node: RunningNode) -> None:
    data = str(fake_node.data)
    assert running_url(fake_node.data) == fake_node.url
    page = command("status", "--json", "--data", data)
    assert (page["url"], page["pid"]) == (fake_node.url, fake_node.process.pid)
    shown = CliRunner().invoke(app, ["status", "--data", data]).stdout
    assert fake_node.url in shown
    assert "fake" in shown


def test_a_second_node_on_the_folder_is_refused(fake_node: RunningNode) -> None:
    with pytest.raises(CommandError, match=rf"process {fake_node.process.pid}\) already runs"):
        command("up", "--port", "0", "--data", str(fake_node.data))
    assert fake_node.http.get("/healthz").status_code == 200


def test_a_model_added_or_removed_is_known_to_the_running_node(fake_node: RunningNode) -> None:
    def served() -> list[str]:
        return [model["id"] for model in fake_node.http.get("/v1/models").json()["data"]]

    command("models", "add", "backend:fake", "--name", "late", "--json", "--data", str(fake_node.data))
    assert served() == ["fake", "late"]
    command("models", "remove", "late", "--json", "--data", str(fake_node.data))
    assert served() == ["fake"]


def test_a_port_that_is_taken_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = read_settings(data=tmp_path, port=other.getsockname()[1])
        with pytest.raises(StartError, match=rf"port {settings.port}: .*in use.* --port"):
            run_node(settings, started=lambda url: pytest.fail("it must not start"))
    assert not (tmp_path / RECORD_FILE).exists()


def test_where_it_answers_is_one_line_of_json(tmp_path: Path) -> None:
    """The reader cannot wait for the end of the output: the node goes on."""
    command_line = [sys.executable, "-m", "node.cli", "up", "--port", "0", "--json", "--data", str(tmp_path)]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        page = json.loads(process.stdout.readline())
        assert httpx.get(f"{page['url']}/healthz", trust_env=False).status_code == 200
        assert page["data"] == str(tmp_path)
        process.terminate()
        assert process.stdout.read() == ""
    assert process.returncode == 0


def test_an_address_of_another_machine_is_too(tmp_path: Path) -> None:
    (tmp_path / "api_keys").write_text("sesame")
    (tmp_path / "api_keys").chmod(0o600)
    settings = read_settings(data=tmp_path, host="192.0.2.1", port=0)  # TEST-NET-1, RFC 5737
    with pytest.raises(StartError, match=r"192\.0\.2\.1"):
        run_node(settings, started=lambda url: pytest.fail("it must not start"))


def peering(data: Path, **more: Any) -> Settings:
    """Settings of a node that would take part in a swarm on this machine alone."""
    return read_settings(data=data, port=0, mesh_host="127.0.0.1", lan_discovery=False, **more)


def test_a_mesh_port_that_is_taken_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = peering(tmp_path, mesh_port=other.getsockname()[1])
        with pytest.raises(StartError, match=r"mesh cannot listen: .*in use.* --mesh-port"):
            run_node(settings, started=lambda facts: pytest.fail("it must not start"))
    assert not (tmp_path / RECORD_FILE).exists()


def test_a_swarm_that_nobody_answers_for_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.peers.JOIN_S", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        nobody = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
    settings = peering(tmp_path, token=SecretStr(JoinToken.generate((nobody,)).encode()))
    with pytest.raises(StartError, match=rf"No node of the swarm answers at {nobody}"):
        run_node(settings, started=lambda facts: pytest.fail("it must not start"), joining=True)
    assert SwarmDir(tmp_path).token() is None, "and it can be told to join another"


def test_a_node_of_one_swarm_does_not_slip_into_another(tmp_path: Path) -> None:
    folder = SwarmDir(tmp_path)
    folder.save_token(JoinToken.generate())
    met = Identity.generate()
    trio.run(folder.save, Remembered((sign_record(met, unread_record(met.peer)),)))
    settings = peering(tmp_path, token=SecretStr(JoinToken.generate().encode()))
    with pytest.raises(StartError, match=r"in another swarm already.*mesh leave"):
        run_node(settings, started=lambda facts: pytest.fail("it must not start"), joining=True)


@pytest.mark.parametrize("text", ["mesh1nonsense", "x" * 5000, "mesh9abcdefgh"])
def test_a_token_that_is_none_is_one_clear_sentence(tmp_path: Path, text: str) -> None:
    settings = peering(tmp_path, token=SecretStr(text))
    with pytest.raises(StartError, match="token") as caught:
        run_node(settings, started=lambda facts: pytest.fail("it must not start"), joining=True)
    assert text not in str(caught.value)


def test_sigterm_lets_answers_finish_and_takes_no_new_ones(slow_node: RunningNode) -> None:
    with slow_node.http as http, slow_node.http as other, stream(http) as answer:
        lines = answer.iter_lines()
        next(lines)
        workers = slow_node.workers()
        slow_node.process.send_signal(signal.SIGTERM)
        wait_until_not_ready(other)
        late = other.post("/v1/completions", json={"model": "slow", "prompt": "hi"})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
        events = [line.removeprefix("data: ") for line in lines if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"]
    assert slow_node.process.wait(END_S) == 0
    assert workers
    assert not psutil.wait_procs(workers, timeout=END_S)[1]
    assert running_url(slow_node.data) is None


def test_a_second_signal_ends_them_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, "slow", backend="fake", engine={"decode_tokens_per_s": 1})
    with running_node(tmp_path, shutdown_grace_s="3600") as node:
        with node.http as http, node.http as other, stream(http) as answer:
            lines = answer.iter_lines()
            next(lines)
            workers = node.workers()
            node.process.send_signal(signal.SIGINT)
            wait_until_not_ready(other)
            node.process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert node.process.wait(END_S) == 0
        assert not psutil.wait_procs(workers, timeout=END_S)[1]


def test_without_grace_answers_are_cut(tmp_path: Path) -> None:
    write_model(tmp_path, "slow", backend="fake", engine={"decode_tokens_per_s": 1})
    with running_node(tmp_path, shutdown_grace_s="0") as node:
        with node.http as http, stream(http) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert node.stop() == 0


def test_a_pinned_model_is_loaded_at_the_start(tmp_path: Path) -> None:
    write_model(tmp_path, "kept", backend="fake", pinned=True)
    write_model(tmp_path, "broken", backend="fake", pinned=True, engine={"fault": {"refuse_load": "no"}})
    with running_node(tmp_path) as node, node.http as http:
        states: dict[str, str] = {}
        while states.get("kept") != "ready":
            states = {model["name"]: model["state"] for model in http.get("/system").json()["models"]}


def test_an_api_key_is_asked_for_and_known_to_the_commands(tmp_path: Path) -> None:
    write_model(tmp_path, "fake", backend="fake")
    (tmp_path / "api_keys").write_text("sesame\n")
    (tmp_path / "api_keys").chmod(0o600)
    with running_node(tmp_path, host="0.0.0.0") as node:
        port = httpx.URL(node.url).port
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).status_code == 401
        assert command("status", "--json", "--data", str(tmp_path))["version"]
        assert "sesame" not in (tmp_path / "stderr.log").read_text()
        assert "sesame" not in " ".join(psutil.Process(node.process.pid).cmdline())
