"""What the engine tells its device to do: plain data, so that every rank of a model can be told the same.

Sequences and kept caches go by numbers that the engine gives them.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from backends.mlx.recipe import Recipe


class Insert(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Take a sequence in. Its first `kept` tokens are in the cache `entry` (0: in none).

    `exact`: it never shares a pass, and its tokens from `prompt` on go through one by one.
    """

    number: int
    tokens: list[int]
    prompt: int
    entry: int
    kept: int
    limit: int  # tokens to draw at most
    recipe: Recipe
    position: int  # of the first of them, in the whole answer
    wants_rows: bool
    exact: bool


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Forget a sequence; keep what is cached of its first `tokens` tokens as `entry`, unless that is 0."""

    number: int
    entry: int = 0
    tokens: int = 0


class Step(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """One pass: of the sequences that share passes (0), or of one that does not."""

    number: int = 0


class Fill(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Process tokens into the cache `entry`, made with the first of them."""

    entry: int
    tokens: list[int]
    hidden: bool = False  # for their hidden states, instead of logits


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Drop kept caches."""

    entries: list[int]


Order: TypeAlias = Insert | Remove | Step | Fill | Forget

_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_encoder = msgspec.msgpack.Encoder()


def encode_order(order: Order) -> bytes:
    """`order` as msgpack."""
    return _encoder.encode(order)


def decode_order(data: bytes) -> Order:
    """The order in `data`. Raises msgspec.ValidationError or msgspec.DecodeError on foreign bytes."""
    return _decoder.decode(data)
