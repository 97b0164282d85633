"""Log-probabilities of a position, as they are sent."""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.mlx.pieces import Pieces
from backends.types import TokenLogprob, TopLogprob


def token_logprob(pieces: Pieces, row: Any, token: int, count: int) -> TokenLogprob:
    """The log-probability of `token` and of the `count` best. `row`: logits, or those plus a constant."""
    shifted = row - row.max()
    normaliser = float(np.log(np.exp(shifted, dtype=np.float64).sum()))
    best: list[int] = []
    if count:
        unsorted = np.argpartition(shifted, -count)[-count:]
        best = sorted((int(other) for other in unsorted), key=lambda other: (-float(shifted[other]), other))
    top = tuple(TopLogprob(other, pieces[other], float(shifted[other]) - normaliser) for other in best)
    return TokenLogprob(token, pieces[token], float(shifted[token]) - normaliser, top)
