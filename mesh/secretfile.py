"""Files that hold a secret: readable by their owner alone, and written whole or not at all.

The modes are checked as OpenSSH checks a private key's: a file that others could have read, or a folder in which
others could have put it, is refused with the command that mends it, because the secret may be known already.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

MAX_SECRET_FILE_BYTES = 16 << 10


class SecretFileError(Exception):
    """The file cannot be used: one sentence for a person, without the file's contents."""


def read_secret(path: Path, *, max_bytes: int = MAX_SECRET_FILE_BYTES) -> bytes | None:
    """What the file holds; None when there is none.

    Raises SecretFileError when group or others may read it, or may write its folder, or it is no small plain file.
    """
    try:
        # Not blocking: a FIFO in the file's place must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SecretFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        # Of the open file, not of its name, which may be another file by now.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SecretFileError(f"{path} is no plain file.")
        if status.st_mode & 0o077:
            raise SecretFileError(
                f"{path} holds a secret and is open to others (mode {stat.S_IMODE(status.st_mode):o}). "
                f"If nobody can have read it: chmod 600 {path}"
            )
        _check_folder(path.parent)
        if status.st_size > max_bytes:
            raise SecretFileError(f"{path} is too large for what it should hold ({status.st_size} bytes).")
        return os.read(descriptor, max_bytes)
    except OSError as error:
        raise SecretFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    finally:
        os.close(descriptor)


def write_secret(path: Path, data: bytes) -> None:
    """Write the file with mode 600, replacing one that is there; a folder that is missing is made with mode 700.

    After a crash at any moment the file is the old one or the new one. Raises SecretFileError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(path.parent)
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SecretFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def _check_folder(folder: Path) -> None:
    """Others may look into it (the files are closed to them) but not put another file in a secret's place."""
    mode = folder.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise SecretFileError(
            f"Others may write in {folder} (mode {stat.S_IMODE(mode):o}), where secrets are kept: chmod go-w {folder}"
        )
