"""Connections until they are agreed on, in threads of the pump process: dialled or accepted, both sides authenticated
by the certificates that their nodes told each other, and the ticket shown.

Whoever connects is a stranger until then. All waiting has an end, and what is read of a stranger is a handshake and 32
bytes.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence

from mesh.tunnel.direct.orders import CONNECT_S, DIAL_S, MAX_HOSTS, TICKET_S

TICKET_BYTES = 32
WELCOME = b"\x06"
"""The answer to a ticket that was taken."""


class Own:
    """This node's certificate and key, as descriptors of files without a name."""

    def __init__(self, certificate: int, key: int) -> None:
        self._certificate, self._key = certificate, key

    def context(self, *, server: bool, trusted: Sequence[bytes]) -> ssl.SSLContext:
        """TLS 1.3, with these certificates and no others on the other side."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # a certificate is known as a whole
        context.verify_mode = ssl.CERT_REQUIRED
        if server:
            context.num_tickets = 0  # nobody resumes: every tunnel is agreed on anew
        for certificate in trusted:
            context.load_verify_locations(cadata=certificate)
        for descriptor in (self._certificate, self._key):
            os.lseek(descriptor, 0, os.SEEK_SET)
        context.load_cert_chain(f"/dev/fd/{self._certificate}", f"/dev/fd/{self._key}")
        return context


def dial(own: Own, hosts: Sequence[str], port: int, certificate: bytes, ticket: bytes) -> ssl.SSLSocket:
    """A connection that the other side has welcomed. Raises OSError."""
    deadline = time.monotonic() + DIAL_S
    context = own.context(server=False, trusted=[certificate])
    failure: OSError = ConnectionError("no address of it is known")
    for host in hosts[:MAX_HOSTS]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        try:
            plain = socket.create_connection((host, port), timeout=min(CONNECT_S, left_s))
            far = _secure(plain, context, deadline, server=False)
        except OSError as error:
            failure = error
            continue
        try:
            if far.getpeercert(binary_form=True) != certificate:
                raise ConnectionError("it has another certificate than it told")
            far.sendall(ticket)
            if _exactly(far, len(WELCOME), deadline) != WELCOME:
                raise ConnectionError("it does not take the ticket")
        except OSError as error:
            far.close()
            failure = error
            continue
        return far
    raise failure


def accept(plain: socket.socket, context: ssl.SSLContext, shown: Callable[[ssl.SSLSocket, bytes, bytes], None]) -> None:
    """Hear a stranger out, and tell `shown` the certificate and the ticket; or hang up."""
    deadline = time.monotonic() + TICKET_S
    try:
        far = _secure(plain, context, deadline, server=True)
    except OSError:
        return
    try:
        certificate, ticket = far.getpeercert(binary_form=True) or b"", _exactly(far, TICKET_BYTES, deadline)
    except OSError:
        far.close()
    else:
        shown(far, certificate, ticket)


def _secure(plain: socket.socket, context: ssl.SSLContext, deadline: float, *, server: bool) -> ssl.SSLSocket:
    """After the handshake. The plain socket is no longer of use, whatever happens."""
    with plain:  # emptied where the handshake begins, and closed where it does not
        plain.settimeout(max(0.01, deadline - time.monotonic()))
        return context.wrap_socket(plain, server_side=server, suppress_ragged_eofs=False)


def _exactly(far: ssl.SSLSocket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        far.settimeout(max(0.01, deadline - time.monotonic()))
        piece = far.recv(size - len(data))
        if not piece or time.monotonic() > deadline:
            raise ConnectionError("it hung up")
        data += piece
    return data
