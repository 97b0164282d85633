"""Which addresses a stranger may make this node connect to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.publicaddress import is_public, stands_for

PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "192.167.1.1", "100.128.0.1", "2606:4700::1111")
NOT_PUBLIC = (
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.7"),
    *("203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "::7f00:1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "100::1"),
    *("2001::1", "2001:db8::1", "2001:20::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "4000::1"),
    *("::ffff:127.0.0.1", "::ffff:10.1.2.3", "::ffff:a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b:1::808:808", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1"),
    *("", "x", "127.1", "0x7f.0.0.1", "2130706433", "1.1.1.1 ", "[::1]"),  # not in digits: nobody connects to these
)


@pytest.mark.parametrize("address", [*PUBLIC, "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::5efe:8.8.8.8"])
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_never_more_than_python_calls_global(address: IPv4Address) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=6))
def test_ipv6_neither(address: IPv6Address) -> None:
    if is_public(str(address)):
        meant = stands_for(str(address))
        assert meant.is_global
        assert isinstance(meant, IPv4Address) or address in IPv6Network("2000::/3")


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}", "2606:4700::5efe:{}"]))
def test_what_stands_for_an_ipv4_address_is_as_public_as_that(address: IPv4Address, form: str) -> None:
    written = form.format(address)
    assert stands_for(written) == address
    assert is_public(written) == is_public(str(address))


@given(st.ip_addresses(), st.text("abc01", max_size=5))
def test_an_interface_changes_nothing(address: IPv4Address | IPv6Address, zone: str) -> None:
    assert stands_for(f"{address}%{zone}") == stands_for(str(address))
    assert is_public(f"{address}%{zone}") == is_public(str(address))
    assert stands_for(str(address)) in (address, ip_address(int(address) & 0xFFFF_FFFF))
