"""What a node keeps of its swarm: closed to others, and never a reason not to start where that can be helped."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mesh.errors import TokenError
from mesh.identity import Identity, IdentityError
from mesh.records import SignedRecord, open_record, sign_record
from mesh.secretfile import MAX_SECRET_FILE_BYTES, SecretFileError
from mesh.swarm import Remembered
from mesh.token import JoinToken
from node.swarmdir import SwarmDir
from tests.node.house import offer, record

TOKEN = JoinToken.generate(("/ip4/127.0.0.1/tcp/4801",))
NAMES = ("identity.pem", "known", "state", "token")


async def filled(data: Path) -> SwarmDir:
    """A folder with everything in it."""
    folder = SwarmDir(data)
    folder.identity()
    folder.save_token(TOKEN)
    folder.begin()
    folder.save_port(4801)
    await folder.save(Remembered((), (b"a ban",)))
    return folder


async def test_everything_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = await filled(tmp_path)
    assert stat.S_IMODE(folder.folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.folder.iterdir()} == dict.fromkeys(
        NAMES, 0o600
    )


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    before = await filled(tmp_path)
    after = SwarmDir(tmp_path)
    assert after.identity().peer == before.identity().peer
    assert after.token() == TOKEN
    assert after.begin() == 2
    assert after.port == 4801
    assert after.load() == Remembered((), (b"a ban",))


def test_a_new_folder_has_nothing_and_a_look_makes_nothing(tmp_path: Path) -> None:
    folder = SwarmDir(tmp_path)
    assert folder.token() is None
    assert folder.port == 0
    assert folder.load() == Remembered()
    assert not folder.folder.exists()


@pytest.mark.parametrize("name", ["identity.pem", "token", "state"])
async def test_what_others_could_read_is_refused_with_the_command_that_mends_it(tmp_path: Path, name: str) -> None:
    folder = await filled(tmp_path)
    (folder.folder / name).chmod(0o644)
    read = {"identity.pem": folder.identity, "token": folder.token, "state": folder.begin}[name]
    with pytest.raises((SecretFileError, IdentityError), match=f"chmod 600 .*{name}"):
        read()


async def test_peers_that_others_could_read_are_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = await filled(tmp_path)
    (folder.folder / "known").chmod(0o644)
    assert folder.load() == Remembered()
    assert "chmod 600" in caplog.text


async def test_damaged_peers_are_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = await filled(tmp_path)
    whole = (folder.folder / "known").read_bytes()
    for damaged in (b"", b"\xc1", whole[:-1], whole + b"x", b"\x91" * 20_000, b"\x82"):
        (folder.folder / "known").write_bytes(damaged)
        assert folder.load() == Remembered()
        assert "cannot be read" in caplog.text
        caplog.clear()


async def test_a_damaged_count_never_goes_back(tmp_path: Path) -> None:
    """Else the node would pass for its own past, and nobody would take its records."""
    folder = await filled(tmp_path)
    for damaged in (b"", b"[]", b'{"starts": -5}', b'{"starts": "x"}', b'{"port": 70000}', b"[" * 10_000):
        (folder.folder / "state").write_bytes(damaged)
        assert folder.begin() > 1_000_000_000
        assert folder.port == 0
    first = folder.begin()
    assert folder.begin() == first + 1


async def test_a_damaged_token_or_key_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    folder = await filled(tmp_path)
    text = TOKEN.encode()
    (folder.folder / "token").write_text(text[:-1] + ("b" if text[-1] == "a" else "a"))
    with pytest.raises(TokenError) as caught:
        folder.token()
    assert text[10:40] not in str(caught.value)
    (folder.folder / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenError):
        folder.token()
    (folder.folder / "identity.pem").write_text("no key")
    with pytest.raises(IdentityError):
        folder.identity()


async def test_a_large_swarm_is_remembered_too(tmp_path: Path) -> None:
    folder = SwarmDir(tmp_path)
    records: list[SignedRecord] = []
    for number in range(30):
        identity = Identity.generate()
        offers = [offer(f"model-{number}-{at}") for at in range(20)]
        records.append(sign_record(identity, record(identity.peer, f"node-{number}", *offers)))
    await folder.save(Remembered(tuple(records)))
    assert (folder.folder / "known").stat().st_size > 2 * MAX_SECRET_FILE_BYTES
    assert [open_record(one).name for one in folder.load().records] == [f"node-{n}" for n in range(30)]


async def test_peers_that_cannot_be_saved_are_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = await filled(tmp_path)
    folder.folder.chmod(0o777)
    await folder.save(Remembered())
    assert "cannot be remembered" in caplog.text


async def test_leaving_keeps_the_key_and_the_count(tmp_path: Path) -> None:
    folder = await filled(tmp_path)
    peer = folder.identity().peer
    folder.forget_swarm()
    folder.forget_swarm()
    assert folder.token() is None
    assert folder.load() == Remembered()
    assert folder.identity().peer == peer
    assert folder.begin() == 2
    folder.forget_all()
    assert folder.identity().peer != peer
