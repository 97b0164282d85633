"""Yamux, sans-IO: two ends and a wire between them that cuts anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import PeerMisbehaved
from mesh.libp2p.yamux import (
    ACK,
    DATA,
    FIN,
    FIRST_WINDOW_BYTES,
    GO_AWAY,
    HEADER,
    MAX_INBOUND,
    PING,
    RST,
    SYN,
    WINDOW,
    WINDOW_BYTES,
    Event,
    Flow,
    Yamux,
)


def ends() -> tuple[Yamux, Yamux]:
    return Yamux(initiator=True), Yamux(initiator=False)


def carry(source: Yamux, target: Yamux) -> list[tuple[Event, Flow | None]]:
    data = b"".join(source.out)
    source.out.clear()
    source.out_bytes = 0
    return target.receive(data)


def opened(source: Yamux, target: Yamux) -> tuple[Flow, Flow]:
    """A stream, and its other end."""
    near = source.open()
    events = carry(source, target)
    assert events[0][0] is Event.OPENED
    assert events[0][1] is not None
    return near, events[0][1]


def frame(kind: int, flags: int, ident: int, length: int, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, ident, length) + body


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=2000)), max_size=30),
    st.lists(st.integers(1, 700), min_size=1, max_size=20),
)
def test_what_is_sent_arrives_in_order_however_the_network_cuts_it(
    writes: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    near, far = ends()
    flows = [near.open() for _ in range(4)]
    for index, data in writes:
        assert near.send(flows[index], memoryview(data)) == len(data)
    for flow in flows:
        near.finish(flow)
    wire, position, turn = b"".join(near.out), 0, 0
    while position < len(wire):
        far.receive(wire[position : position + cuts[turn % len(cuts)]])
        position, turn = position + cuts[turn % len(cuts)], turn + 1
    for index, flow in enumerate(flows):
        other = far.flows[flow.id]
        assert far.take(other) == b"".join(data for each, data in writes if each == index)
        assert other.ended
    assert far.unread_bytes == 0


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused_or_ignored(data: bytes) -> None:
    _, far = ends()
    try:
        far.receive(data)
    except PeerMisbehaved:
        return
    assert far.unread_bytes <= len(data)
    assert len(far.flows) <= MAX_INBOUND


def test_a_window_closes_opens_when_read_and_grows_once() -> None:
    near, far = ends()
    mine, theirs = opened(near, far)
    data = memoryview(bytes(4 * WINDOW_BYTES))
    sent = 0
    while count := near.send(mine, data):
        sent += count
    assert sent == FIRST_WINDOW_BYTES
    carry(near, far)
    assert far.take(theirs) == bytes(sent)
    assert (Event.WRITABLE, mine) in carry(far, near)
    assert mine.window == WINDOW_BYTES
    carry(near, far)
    while count := near.send(mine, data):
        sent += count
    carry(near, far)
    far.take(theirs)
    carry(far, near)
    assert mine.window == WINDOW_BYTES


def test_a_stream_is_forgotten_when_both_sides_have_ended() -> None:
    for order in ("near first", "far first"):
        near, far = ends()
        mine, theirs = opened(near, far)
        if order == "near first":
            near.finish(mine)
            carry(near, far)
            far.finish(theirs)
            carry(far, near)
        else:
            far.finish(theirs)
            carry(far, near)
            near.finish(mine)
            carry(near, far)
        assert not near.flows
        assert not far.flows
        assert mine.ended
        assert not mine.reset


def test_a_reset_drops_what_is_unread_and_lets_late_data_pass() -> None:
    near, far = ends()
    mine, theirs = opened(near, far)
    near.send(mine, memoryview(b"unread"))
    carry(near, far)
    assert far.unread_bytes == 6
    far.reset(theirs)
    near.send(mine, memoryview(b"late"))
    carry(near, far)
    assert far.unread_bytes == 0
    assert (Event.READABLE, mine) in carry(far, near)
    assert mine.reset
    assert not near.flows


def test_data_for_a_stream_that_was_left_is_answered_with_a_reset() -> None:
    near, far = ends()
    mine, theirs = opened(near, far)
    far.leave(theirs)
    carry(far, near)
    near.send(mine, memoryview(b"is anybody there"))
    carry(near, far)
    carry(far, near)
    assert mine.reset
    assert far.unread_bytes == 0


def test_one_stream_too_many_is_reset() -> None:
    near, far = ends()
    flows = [near.open() for _ in range(MAX_INBOUND + 1)]
    carry(near, far)
    carry(far, near)
    assert len(far.flows) == MAX_INBOUND
    assert [flow.reset for flow in flows] == [False] * MAX_INBOUND + [True]
    near.reset(flows[0])
    carry(near, far)
    assert opened(near, far)


def test_a_ping_is_answered_and_a_goodbye_reported() -> None:
    near, far = ends()
    near.ping()
    carry(near, far)
    assert far.out == [frame(PING, ACK, 0, 0)]
    near.go_away()
    assert carry(near, far) == [(Event.CLOSED, None)]


@pytest.mark.parametrize(
    "data",
    [
        b"\x01" + frame(DATA, 0, 1, 0)[1:],
        frame(GO_AWAY + 1, 0, 1, 0),
        frame(WINDOW, SYN, 2, 0),  # our own parity
        frame(WINDOW, SYN, 0, 0),
        frame(WINDOW, SYN, 1, 0) * 2,
        frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, FIRST_WINDOW_BYTES + 1),
        frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, 0xFFFFFFFF),  # 4 GiB
    ],
)
def test_what_no_peer_of_ours_sends_is_misbehaviour(data: bytes) -> None:
    _, far = ends()
    with pytest.raises(PeerMisbehaved):
        far.receive(data)


@pytest.mark.parametrize("data", [frame(DATA, 0, 9, 3, b"abc"), frame(WINDOW, FIN, 9, 0), frame(WINDOW, RST, 9, 0)])
def test_frames_of_forgotten_streams_pass(data: bytes) -> None:
    _, far = ends()
    assert far.receive(data) == []
    assert far.out == []


def test_py_libp2p_may_send_data_and_an_end_with_the_first_frame() -> None:
    _, far = ends()
    events = far.receive(frame(DATA, SYN | FIN, 1, 5, b"hello"))
    assert [event for event, _ in events] == [Event.OPENED, Event.READABLE, Event.READABLE]
    flow = far.flows[1]
    assert far.take(flow) == b"hello"
    assert flow.ended
