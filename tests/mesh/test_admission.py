"""The challenge: members get in; strangers, replays, mirrors, go-betweens and garbage do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.admission import MAX_STRANGER_BYTES, Admitted, Challenger, Kind, State
from mesh.errors import Incompatible, NotAMember, PeerError, PeerMisbehaved
from mesh.identity import Identity

A, B, C = (Identity(bytes([seed]) * 32).peer for seed in (1, 2, 3))
KEY = b"k" * 32
WRONG = b"w" * 32
ONE = range(1, 2)


def dialler(key: bytes = KEY, own: str = A, other: str = B, protocols: range = ONE) -> Challenger:
    return Challenger(key, own, other, dialler=True, protocols=protocols)


def listener(key: bytes = KEY, own: str = B, other: str = A, protocols: range = ONE) -> Challenger:
    return Challenger(key, own, other, dialler=False, protocols=protocols)


class Run:
    """Both sides over a link, until nobody has anything to send: what each received, and what it raised.

    Bytes arrive in pieces; `change` names a side and the bit, of all that it receives, that arrives wrong.
    """

    def __init__(
        self,
        one: Challenger,
        other: Challenger,
        piece: int = 1024,
        change: tuple[Challenger, int] | None = None,
    ) -> None:
        self.received = {one: b"", other: b""}
        self.raised: dict[Challenger, PeerError] = {}
        queue = [(other, one.start()), (one, other.start())]
        while queue:
            to, data = queue.pop(0)
            back = other if to is one else one
            if not data or to in self.raised:
                continue
            if change is not None and change[0] is to:
                data = _flipped(data, change[1] - 8 * len(self.received[to]))
            self.received[to] += data[:piece]
            queue.insert(0, (to, data[piece:]))
            try:
                queue.append((back, to.receive(data[:piece])))
            except PeerError as error:
                self.raised[to] = error
                queue.append((back, to.parting))


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    if 0 <= bit < 8 * len(data):
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("piece", [1, 2, 7, 35, 1024])
def test_two_members_admit_each_other(piece: int) -> None:
    one, other = dialler(), listener()
    run = Run(one, other, piece)
    assert not run.raised
    assert one.result == other.result == Admitted(1)
    assert max(map(len, run.received.values())) <= 72


@settings(max_examples=300)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 80))
def test_the_highest_common_version_or_both_are_named(a: int, more_a: int, b: int, more_b: int, piece: int) -> None:
    """300 pairs of ranges."""
    ours, theirs = range(a, a + more_a + 1), range(b, b + more_b + 1)
    one, other = dialler(protocols=ours), listener(protocols=theirs)
    run = Run(one, other, piece)
    common = set(ours) & set(theirs)
    if common:
        assert not run.raised
        assert one.result == other.result == Admitted(max(common))
    else:
        assert one.result is other.result is None
        for side in (one, other):
            assert isinstance(run.raised[side], Incompatible)
            for number in (ours[0], ours[-1], theirs[0], theirs[-1]):
                assert str(number) in str(run.raised[side])


def test_versions_are_named_for_people() -> None:
    one, other = dialler(protocols=range(3, 6)), listener(protocols=ONE)
    run = Run(one, other)
    assert f"Peer {B} speaks version 1 of" in str(run.raised[one])
    assert "this node versions 3 to 5: update the mesh on that machine." in str(run.raised[one])
    assert "update the mesh on this machine." in str(run.raised[other])


def test_a_stranger_who_dials_gets_a_nonce_and_a_refusal() -> None:
    """All that a wrong token is ever sent: 38 bytes of greeting and an empty REFUSED. No proof, no protocol."""
    one, other = dialler(WRONG), listener()
    run = Run(one, other)
    assert isinstance(run.raised[other], NotAMember)
    assert isinstance(run.raised[one], NotAMember)
    assert "tokens differ" in str(run.raised[one])
    assert one.result is other.result is None
    assert run.received[one] == other.start() + bytes((Kind.REFUSED, 0))
    assert len(run.received[one]) == 40


def test_a_stranger_who_listens_learns_no_more_than_a_mac_of_its_nonce() -> None:
    one, other = dialler(), listener(WRONG)
    run = Run(one, other)
    assert one.result is None
    assert isinstance(run.raised[other], NotAMember)
    assert len(run.received[other]) == 38 + 34


def test_a_stranger_who_pretends_to_be_convinced() -> None:
    """A listener without the key that goes on with a proof of its own making."""
    one = dialler()
    one.receive(listener(WRONG).start())
    with pytest.raises(NotAMember):
        one.receive(bytes((Kind.PROOF, 32)) + bytes(32))
    assert one.result is None
    assert one.parting == bytes((Kind.REFUSED, 0))


@pytest.mark.parametrize("first", [True, False], ids=["dialler", "listener"])
def test_a_recorded_challenge_is_of_no_use(*, first: bool) -> None:
    """All that an honest member once sent, sent again to the same other side."""
    one, other = dialler(), listener()
    run = Run(one, other)
    victim, recorded = (listener(), run.received[other]) if first else (dialler(), run.received[one])
    victim.start()
    with pytest.raises(NotAMember):
        victim.receive(recorded)
    assert victim.result is None


def test_a_mirror_is_not_admitted() -> None:
    """A stranger who sends each byte back, as either role."""
    one = dialler()
    proof = one.receive(one.start())
    with pytest.raises(NotAMember):
        one.receive(proof)
    other = listener()
    assert other.receive(other.start()) == b""
    with pytest.raises(PeerMisbehaved):
        other.receive(other.start())
    assert one.result is other.result is None


def test_a_proof_is_bound_to_its_role() -> None:
    """Even with both greetings the same, one side's proof is not the other's: a go-between with two connections."""
    one, two = dialler(), dialler(own=B, other=A)
    hello_one, hello_two = one.start(), two.start()
    proof = one.receive(hello_two)
    two.receive(hello_one)
    with pytest.raises(NotAMember):
        two.receive(proof)


def test_a_go_between_with_an_id_of_its_own_is_not_admitted() -> None:
    """C, without the token, passes everything on between A and B: A sees C and B sees C, and the proofs say so."""
    one, other = dialler(own=A, other=C), listener(own=B, other=C)
    run = Run(one, other)
    assert isinstance(run.raised[other], NotAMember)
    assert one.result is other.result is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (dialler(own=C), listener()),
        (dialler(other=C), listener()),
        (dialler(), listener(own=C)),
        (dialler(own=B, other=A), listener()),
    ],
    ids=["claims another's id", "thinks it is another", "is another", "swapped"],
)
def test_ids_are_those_that_the_transport_proved(one: Challenger, other: Challenger) -> None:
    run = Run(one, other)
    assert isinstance(run.raised[other], NotAMember)
    assert one.result is other.result is None


def test_nobody_on_the_way_talks_two_members_down() -> None:
    one, other = dialler(protocols=range(1, 3)), listener(protocols=range(1, 3))
    hello = bytearray(one.start())
    hello[5] = 1  # highest version: 1
    proof = one.receive(other.start())
    other.receive(bytes(hello))
    with pytest.raises(NotAMember):
        other.receive(proof)


def test_a_longer_greeting_of_a_newer_mesh_is_taken() -> None:
    one, other = dialler(), listener()
    one._hello += b"what a later version adds"
    Run(one, other)
    assert one.result == other.result == Admitted(1)


@pytest.mark.parametrize("sender_dials", [True, False])
def test_every_changed_bit_is_found(*, sender_dials: bool) -> None:
    """576 changes of what one member sends: the other never admits it, and says so or waits for what does not come."""
    for at in range(72 * 8):
        one, other = dialler(), listener()
        sender, victim = (one, other) if sender_dials else (other, one)
        run = Run(one, other, change=(victim, at))
        assert len(run.received[victim]) > at // 8
        assert victim.result is None
        assert victim in run.raised or victim.state in (State.HELLO, State.PROOF)
        if sender_dials:
            assert sender.result is None, "it is the listener's proof that admits"


@pytest.mark.parametrize(
    "data",
    [
        bytes((0, 0)),
        bytes((99, 1)),
        bytes((Kind.PROOF, 32)) + bytes(32),
        bytes((Kind.HELLO, 0)),
        bytes((Kind.HELLO, 35)) + bytes(35),
        bytes((Kind.HELLO, 36, 0, 2, 0, 1)) + bytes(32),
        (bytes((Kind.HELLO, 36, 0, 1, 0, 1)) + bytes(32)) * 2,
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(MAX_STRANGER_BYTES + 1),
    ],
)
def test_what_breaks_the_rules(data: bytes) -> None:
    for side in (dialler(), listener()):
        with pytest.raises(PeerMisbehaved, match="rules of admission"):
            side.receive(data)
        assert side.result is None
        assert side.parting == b""


def test_being_refused_at_once_is_understood() -> None:
    for side in (dialler(), listener()):
        with pytest.raises(NotAMember, match="tokens differ"):
            side.receive(bytes((Kind.REFUSED, 0)))
        assert side.state is State.REFUSED


def test_bytes_after_the_end() -> None:
    one, other = dialler(), listener()
    Run(one, other)
    for side in (one, other):
        with pytest.raises(PeerMisbehaved):
            side.receive(b"x")
        assert side.result is None


def test_a_stranger_who_drips_is_cut_off_at_its_second_frame() -> None:
    """The longest greeting, then the longest proof, byte by byte: 514 bytes are all that is ever waited for."""
    side = listener()
    for byte in bytes((Kind.HELLO, 255, 0, 1, 0, 1)) + bytes(251) + bytes((Kind.PROOF, 255)) + bytes(254):
        side.receive(bytes((byte,)))
    with pytest.raises(NotAMember):
        side.receive(b"x")


def test_one_who_was_refused_gets_no_second_try() -> None:
    key = dialler()
    other = listener()
    hello = other.start()
    with pytest.raises(NotAMember):
        other.receive(key.start() + bytes((Kind.PROOF, 32)) + bytes(32))
    proof = key.receive(hello)
    with pytest.raises(PeerMisbehaved):
        other.receive(proof)
    assert other.state is State.REFUSED
    assert other.result is None


@settings(max_examples=1000)
@given(st.booleans(), st.lists(st.binary(max_size=80), max_size=20))
def test_random_bytes_admit_nobody(dials: bool, chunks: list[bytes]) -> None:
    """1,000 runs of random bytes against either role."""
    side = dialler() if dials else listener()
    try:
        for chunk in chunks:
            side.receive(chunk)
    except PeerError:
        pass
    assert side.result is None


@settings(max_examples=500)
@given(
    st.booleans(),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.binary(max_size=60)), max_size=6),
)
def test_well_formed_frames_without_the_key_admit_nobody(dials: bool, frames: list[tuple[int, bytes]]) -> None:
    """500 runs of frames in any order."""
    side = dialler() if dials else listener()
    try:
        for kind, body in frames:
            side.receive(bytes((kind, len(body))) + body)
    except PeerError:
        pass
    assert side.result is None


def test_the_key_is_in_no_repr() -> None:
    key = bytes(range(65, 97))
    assert key.decode() not in repr(dialler(key))
    assert "state=HELLO" in repr(dialler(key))


@pytest.mark.parametrize("protocols", [range(0), range(1, 9, 2), range(-1, 3), range(1, 70_000)])
def test_our_own_mistakes_are_value_errors(protocols: range) -> None:
    with pytest.raises(ValueError):
        dialler(protocols=protocols)
    with pytest.raises(ValueError):
        dialler(b"short")
