"""What routing reckons with before any tokenizer has seen a request."""

from __future__ import annotations

from backends.types import ChatRequest, ImagePart, Message, Part, TextPart
from node.need import CHARS_PER_TOKEN, need_of
from tests.support.images import PNG, png

LONG = "a long story " * 400


def seeing(*parts: bytes | str) -> ChatRequest:
    content: tuple[Part, ...] = tuple(
        TextPart(part) if isinstance(part, str) else ImagePart(data=part) for part in parts
    )
    return ChatRequest(model="m", messages=(Message(role="user", content=content),))


def test_an_image_counts_as_what_a_model_makes_of_it_not_as_its_bytes() -> None:
    text, small, large = (
        need_of(seeing(*parts), 10, None).prompt_tokens for parts in (("?",), (PNG, "?"), (PNG + bytes(1 << 20), "?"))
    )
    assert small == large
    assert 200 < small - text < 300


def test_images_are_part_of_the_beginning_that_a_cache_may_hold() -> None:
    one, same, other = (need_of(seeing(image, LONG), 10, None).prefix for image in (PNG, PNG, png(9, 9)))
    assert one == same
    assert len(one) > len(LONG) / CHARS_PER_TOKEN / 1000
    assert one[0] != other[0]


def test_who_shows_images_asks_for_eyes() -> None:
    assert need_of(seeing(PNG, "?"), 10, None).capability == "vision"
    assert need_of(seeing("?"), 10, None).capability == "chat"
