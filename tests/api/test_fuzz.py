"""Arbitrary bodies at every endpoint: never a 500, always an envelope, nothing left running."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.serving import Served
from tests.api.test_bad_input import CASES, GOOD

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.integers(min_value=-2, max_value=40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(["user", "text", "json_object", "json_schema", "type", "content", "base64", "smol"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["role", "content", "type", "text", "schema", "name", "json_schema"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def fields(path: str) -> list[str]:
    return sorted({case[1] for case in CASES if case[0] == path} - {"model"})


def check(answer: httpx.Response, double: Served) -> None:
    assert answer.status_code in (200, 400, 404), answer.text
    assert double.dispatcher.running == 0
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", GOOD)
@FUZZ
@given(data=st.data())
def test_any_values_in_known_fields(http: httpx.Client, double: Served, path: str, data: st.DataObject) -> None:
    changes: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(fields(path)), VALUES, max_size=3))
    kept = {name: value for name, value in GOOD[path].items() if data.draw(st.booleans()) or name == "model"}
    body = kept | {"max_tokens": 4} | changes
    try:
        encoded = msgspec.json.encode(body)
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError):
        encoded = repr(body).encode("utf-8", "replace")
    check(http.post(path, content=encoded), double)


@pytest.mark.parametrize("path", GOOD)
@FUZZ
@given(body=st.binary(max_size=200) | VALUES.map(lambda value: repr(value).encode("utf-8", "replace")))
def test_any_bytes(http: httpx.Client, double: Served, path: str, body: bytes) -> None:
    check(http.post(path, content=body), double)


@FUZZ
@given(text=st.text(max_size=140))
def test_any_filter(http: httpx.Client, double: Served, text: str) -> None:
    check(http.get("/v1/models", params={"filter": text.encode("utf-8", "replace")}), double)
