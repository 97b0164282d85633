"""One rank of a model, other than the head's: does what it is told, in step with the others.

python -m backends.mlx.rank FOLDER PART OWN_PORT NEXT_PORT FD
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from queue import SimpleQueue

import msgspec

from backends.mlx.folder import read_folder
from backends.mlx.orders import decode_order
from backends.mlx.ring import Part, Word, enter_ring, receive_frame, send_frame
from backends.mlx.sharing import open_part
from backends.types import LoadFailed


def main() -> None:
    """Until the head is gone."""
    folder, part = read_folder(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Part)
    control = socket.socket(fileno=int(sys.argv[5]))
    orders: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        # A rank that waits for one of the others in the middle of a pass notices nothing else.
        while True:
            try:
                orders.put(receive_frame(control))
            except OSError:
                os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    hosts = enter_ring(part.rank, part.size, own_port=int(sys.argv[3]), next_port=int(sys.argv[4]))
    try:
        device = open_part(folder, part)
    except LoadFailed as error:
        send_frame(control, msgspec.json.encode(Word("failed", error.message)))
        return
    finally:
        hosts.unlink(missing_ok=True)
    send_frame(control, msgspec.json.encode(Word("ready")))
    while True:
        device.carry_out(decode_order(orders.get()))


if __name__ == "__main__":
    main()
