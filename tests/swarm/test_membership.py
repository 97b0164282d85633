"""Coming and going: tokens, and who is let in."""

from __future__ import annotations

import time
from pathlib import Path

from mesh.token import JoinToken
from tests.support.nodes import RunningNode, Swarm, mesh_command, mesh_process, running_node, states
from tests.swarm.chats import chats

ALONE = {"solo": "false", "mesh_host": "127.0.0.1", "lan_discovery": "false"}
REFUSED_S = 15.0
"""Bound of what the node does in less than 5 s where it is not disturbed."""


def refused(token: str, data: Path) -> str:
    """What `mesh join` says when it does not get in."""
    ended = mesh_process("join", "-", "--port", "0", data=data, stdin=token, **ALONE)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    assert "Traceback" not in ended.stderr
    assert token[:30] not in ended.stderr
    return ended.stderr


def id_of(node: RunningNode) -> str:
    return str(node.get("/api/mesh")["id"])


def test_whoever_has_another_token_is_not_let_in_and_told_so(three: Swarm, tmp_path: Path) -> None:
    good = JoinToken.parse(three.token)
    other = JoinToken(JoinToken.generate().secret, good.addresses).encode()
    nowhere = JoinToken(good.secret, ("/ip4/127.0.0.1/tcp/9",)).encode()
    began = time.monotonic()
    assert "is not let in" in refused(other, tmp_path / "stranger")
    assert time.monotonic() - began < REFUSED_S
    assert "No node of the swarm answers" in refused(nowhere, tmp_path / "lost")
    for name in ("stranger", "lost"):
        assert not (tmp_path / name / "swarm" / "token").exists()
    assert set(states(three["a"].get("/api/mesh"))) == {"a", "b", "c"}


def test_a_token_comes_from_a_file_or_the_environment_and_nobody_can_read_it(three: Swarm, tmp_path: Path) -> None:
    (tmp_path / "token.txt").write_text(three.token + "\n")
    three.join("d", str(tmp_path / "token.txt"))
    with running_node(three.folder / "e", **ALONE) as first:  # `mesh up` by mistake made it a swarm of its own
        assert first.stop() == 0
    three.join("e", token=three.token)
    three.until_met()
    secret = JoinToken.parse(three.token).secret.hex()
    for node in three.running:
        folder = node.data / "swarm"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {"token", "identity.pem", "state"} <= {path.name for path in folder.iterdir()}
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        tokens = (three.token, (folder / "token").read_text().strip())
        assert not any(token in node.log or token[:30] in node.log for token in tokens)
        assert secret not in node.log
        for worker in node.workers():
            assert not any(
                token in text for token in tokens for text in (*worker.cmdline(), *worker.environ().values())
            )
        with node.http as client:
            assert client.get("/api/p2p/token").text.startswith("mesh1")
    for name in "de":
        assert three.nodes.pop(name).stop() == 0
    three["a"].until_sees(d="left", e="left")
    printed = mesh_command("token", data=three["b"].data)
    assert JoinToken.parse(printed.stdout).secret == JoinToken.parse(three.token).secret
    assert printed.stdout.count("\n") == 1


async def test_a_node_that_leaves_serves_on_alone(three: Swarm) -> None:
    name_and_id = id_of(three["b"])
    said = mesh_command("leave", data=three["b"].data)
    assert said.exit_code == 0, said.exception
    three["a"].until_sees(b="left")
    three["c"].until_sees(b="left")
    assert not (three["b"].data / "swarm" / "token").exists()
    [told] = await chats(three["b"], "far", ["Hello"])
    assert (told.node, told.done) == ("b", True)
    [told] = await chats(three["b"], "near", ["Hello"])
    assert (told.status, told.error["code"]) == (404, "model_not_found")
    assert mesh_command("token", data=three["b"].data).exit_code == 1
    with three["b"].http as client:
        assert client.get("/api/p2p/token").text == ""
    federated = three["a"].get("/api/p2p/federation")["nodes"]
    assert {node["Name"] for node in federated} == {"a", "c"}
    # It may come back, with the token and as who it was.
    assert three["b"].stop() == 0
    three.join("b", three.token)
    three.until_met()
    assert id_of(three["b"]) == name_and_id


def test_a_kick_spreads_lasts_and_can_be_taken_back(three: Swarm) -> None:
    banned = id_of(three["c"])
    said = mesh_command("kick", "c", data=three["a"].data)
    assert (said.exit_code, banned in said.stdout) == (0, True), said.exception
    for name in "abc":  # the kicked one is told, too
        three[name].until(lambda view: banned in view["banned"])
    for name in "ab":
        three[name].until(lambda view: "c" not in states(view))
    assert three["c"].stop() == 0
    # Its owner still has the token. The node that never spoke to the one that kicked refuses it as well.
    addresses = next(node["addresses"] for node in three["b"].get("/api/mesh")["nodes"] if node["self"])
    token = JoinToken(JoinToken.parse(three.token).secret, tuple(addresses)).encode()
    refused(token, three["c"].data)
    said = mesh_command("pardon", banned, data=three["b"].data)
    assert said.exit_code == 0, said.exception
    three["a"].until(lambda view: banned not in view["banned"])
    three.join("c", three.token)
    three.until_met()


def test_a_node_comes_back_by_itself_also_when_whom_it_joined_is_gone(three: Swarm) -> None:
    ids = {name: id_of(three[name]) for name in "bc"}
    for name in "bc":
        assert three[name].stop() == 0
    three.kill("a")  # at whose address both have joined
    three.start("b", "c")
    three.until_met()
    assert {name: id_of(three[name]) for name in "bc"} == ids
