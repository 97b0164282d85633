"""Bans: signed, numbered, and the same verdict everywhere, in whatever order they arrive."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.bans import BanBook, SignedBan
from mesh.errors import PeerMisbehaved
from mesh.identity import Identity

WHO = [Identity(random.Random(number).randbytes(32)) for number in range(4)]
ME, YOU, THIRD, FOURTH = WHO


def stated(book: BanBook, by: Identity, peer: str, *, lifted: bool = False) -> SignedBan:
    signed = book.state(by, peer, lifted=lifted)
    assert signed is not None
    assert book.learn(signed) is not None
    return signed


def test_a_ban_holds_until_it_is_lifted_and_says_whose_it_is() -> None:
    book = BanBook()
    signed = book.state(ME, YOU.peer, lifted=False)
    assert signed is not None
    ban = book.learn(signed)
    assert ban is not None
    assert (ban.peer, ban.by, ban.lifted) == (YOU.peer, ME.peer, False)
    assert YOU.peer in book
    assert book.banned == {YOU.peer}
    assert book.learn(signed) is None  # no news
    assert book.state(THIRD, YOU.peer, lifted=False) is None  # it is so already
    stated(book, THIRD, YOU.peer, lifted=True)
    assert YOU.peer not in book
    assert book.learn(signed) is None  # an old statement does not come back
    assert book.version == 2
    assert len(book.all()) == 1


def test_the_banned_cannot_lift_their_own() -> None:
    book = BanBook()
    stated(book, ME, YOU.peer)
    own = book.state(YOU, YOU.peer, lifted=True)
    assert own is not None
    assert book.learn(own) is None
    assert YOU.peer in book


def test_forgeries_are_refused() -> None:
    book = BanBook()
    signed = book.state(ME, YOU.peer, lifted=False)
    other = book.state(THIRD, YOU.peer, lifted=False)
    assert signed is not None
    assert other is not None
    for forged in (
        msgspec.structs.replace(signed, signature=other.signature),
        msgspec.structs.replace(signed, body=signed.body.replace(YOU.peer.encode(), THIRD.peer.encode())),
        msgspec.structs.replace(signed, body=b"\xff"),
        msgspec.structs.replace(signed, signature=ME.sign(signed.body)),  # of the same bytes, for another purpose
    ):
        with pytest.raises(PeerMisbehaved):
            book.learn(forged)
    assert not book.banned
    assert book.version == 0


def test_the_book_is_bounded_and_lets_go_of_lifted_bans_first() -> None:
    book = BanBook(limit=2)
    stated(book, ME, YOU.peer)
    stated(book, ME, THIRD.peer)
    refused = book.state(ME, FOURTH.peer, lifted=False)
    assert refused is not None
    assert book.learn(refused) is None
    stated(book, ME, YOU.peer, lifted=True)
    assert book.learn(refused) is not None
    assert book.banned == {THIRD.peer, FOURTH.peer}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_books_that_heard_the_same_agree(data: st.DataObject) -> None:
    """100 histories: several members state things at once, and the statements arrive in two orders."""
    books = [BanBook() for _ in WHO]
    statements = []
    for _ in range(data.draw(st.integers(1, 6))):
        speaker = data.draw(st.integers(0, 3))
        target = data.draw(st.sampled_from([YOU.peer, THIRD.peer]))
        lifted = data.draw(st.booleans())
        signed = books[speaker].state(WHO[speaker], target, lifted=lifted)
        if signed is not None:
            books[speaker].learn(signed)
            statements.append(signed)
    one, other = BanBook(), BanBook()
    for book, order in ((one, statements), (other, data.draw(st.permutations(statements)))):
        for signed in order:
            book.learn(signed)
    assert one.banned == other.banned
    assert set(one.all()) == set(other.all())
