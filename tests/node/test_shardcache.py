"""Half a tensor is never taken for a whole one."""

from __future__ import annotations

import os
from pathlib import Path

from node.shardcache import SETTLED_S, ShardCache


def names(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


def made(folder: Path, limit: int = 1000) -> ShardCache:
    cache = ShardCache(folder / "rpc-cache", limit)
    cache.begin()
    return cache


def test_what_was_there_when_nothing_was_written_is_there_again(tmp_path: Path) -> None:
    cache = made(tmp_path)
    (cache.folder / "a").write_bytes(b"whole")
    cache.settle()
    (cache.folder / "b").write_bytes(b"ha")  # and then it is killed
    made(tmp_path)
    assert names(cache) == {"a"}


def test_a_file_that_is_not_as_long_as_it_was_goes(tmp_path: Path) -> None:
    cache = made(tmp_path)
    (cache.folder / "a").write_bytes(b"whole")
    cache.settle()
    (cache.folder / "a").write_bytes(b"who")
    assert names(made(tmp_path)) == set()


def test_under_a_long_lease_what_is_old_counts(tmp_path: Path) -> None:
    cache = made(tmp_path)
    for name, age_s in (("old", SETTLED_S + 1), ("new", 0.0)):
        path = cache.folder / name
        path.write_bytes(b"x")
        at = path.stat().st_mtime - age_s
        os.utime(path, (at, at))
    cache.settle(unused_s=SETTLED_S)
    assert names(made(tmp_path)) == {"old"}


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = made(tmp_path, limit=25)
    for number, name in enumerate("abc"):
        path = cache.folder / name
        path.write_bytes(bytes(10))
        os.utime(path, (1000 + number, 1000 + number))
    os.utime(cache.folder / "a", (5000, 1000))  # used, not written
    cache.settle()
    assert names(made(tmp_path, limit=25)) == {"a", "c"}


def test_a_list_that_cannot_be_read_vouches_for_nothing(tmp_path: Path) -> None:
    cache = made(tmp_path)
    for content in (b"", b"[1]", b"\xff", b'{"a": -1}'):
        (cache.folder / "a").write_bytes(b"whole")
        (tmp_path / "rpc-cache.json").write_bytes(content)
        made(tmp_path)
        assert names(cache) == set()
