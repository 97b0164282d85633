"""The transport on py-libp2p: the only package that imports it, with every workaround that it needs.

Importing this package does not import py-libp2p (1.4 s, 83 MB): that happens when a transport runs.
"""

from mesh.libp2p.transport import Libp2pTransport, Options

__all__ = ["Libp2pTransport", "Options"]
