"""The served double of tests/api."""

from tests.api.conftest import double, http, shared_double

__all__ = ["double", "http", "shared_double"]
