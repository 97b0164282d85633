"""A candidate's terms in words, for `mesh explain`."""

from __future__ import annotations

from mesh.estimate import Candidate


def explain_candidate(candidate: Candidate) -> dict[str, str | float | int | bool]:
    """A plain row: the terms as numbers in seconds, what they were reckoned from, and all of it in words."""
    replica, terms = candidate.replica, candidate.terms
    return {
        "node": replica.name,
        "peer": replica.peer,
        "model": replica.offer.model,
        "digest": replica.offer.digest,
        "usable": not candidate.reason,
        "reason": candidate.reason,
        "slots_free": candidate.slots_free,
        "slots": candidate.slots,
        "total_s": terms.total_s,
        "queue_s": terms.queue_s,
        "load_s": terms.load_s,
        "prefill_s": terms.prefill_s,
        "decode_s": terms.decode_s,
        "round_trip_s": terms.round_trip_s,
        "penalty_s": terms.penalty_s,
        "words": "; ".join(_words(candidate)),
    }


def _words(candidate: Candidate) -> list[str]:
    replica, need, terms, rates = candidate.replica, candidate.need, candidate.terms, candidate.rates
    words = [f"{candidate.active} calls on {candidate.slots} slots"]
    if replica.reserved.calls or replica.reserved.ended:
        words[0] += (
            f" (this node sent {replica.reserved.calls} since the last report, and {replica.reserved.ended} have ended)"
        )
    if terms.queue_s:
        words.append(f"work ahead of it: {_s(terms.queue_s)}")
    if terms.load_s:
        words.append(f"the model has to be loaded: {_s(terms.load_s)}")
    if need.prompt_tokens:
        words.append(
            f"{candidate.cached_tokens} of {need.prompt_tokens} prompt tokens cached, the rest at "
            f"{rates.prefill_tokens_per_s:.0f}/s: {_s(terms.prefill_s)}"
        )
    if need.output_tokens:
        each = rates.decode_tokens_per_s(candidate.batch) / candidate.batch
        words.append(
            f"{need.output_tokens} new tokens at {each:.1f}/s in a batch of {candidate.batch}: {_s(terms.decode_s)}"
        )
    if not rates.measured:
        words.append("not measured there yet: a stand-in for the rates")
    if terms.round_trip_s:
        words.append(f"round trip: {_s(terms.round_trip_s)}")
    if terms.penalty_s:
        words.append(f"{candidate.error_rate:.0%} of its calls failed lately: {_s(terms.penalty_s)}")
    return words


def _s(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
