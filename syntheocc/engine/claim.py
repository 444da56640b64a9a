"""One job an output folder: two that write into one would delete each other's half-written checkpoints."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The file that is locked, and removed when the job ends.
LOCK_FILE = ".lock"
_held: set[Path] = set()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes out of it while the block runs; within a process, blocks may nest.

    The lock is the kernel's and goes with the process, so a killed job leaves nothing that would keep its successor
    out. It is a POSIX lock: readers that were forked from a killed job do not hold it, as they would one of flock.
    Where a file system has no locks, nothing is locked.

    Raises:
        ValueError: another job has the folder, or nothing can be written there; the message says which.
    """
    path = Path(folder).resolve() / LOCK_FILE
    if path in _held:
        yield
        return
    is_new = not path.parent.exists()
    descriptor = _lock(path)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)  # before the lock goes: nobody else's file
        os.close(descriptor)
        if is_new:
            with suppress(OSError):  # not empty
                path.parent.rmdir()


def _lock(path: Path) -> int:
    """The descriptor of the locked file."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ValueError(
                f"{path.parent}: nothing can be written there ({error.strerror}); give another output_dir"
            ) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise ValueError(
                f"{path.parent}: another job writes there ({holder or 'it is just starting'}); give another "
                "output_dir, or end that job"
            ) from None
        except OSError:  # a file system without locks
            return descriptor
        if _is_same(descriptor, path):
            # Only a hint for people: a full disk must not keep a job from starting over.
            with suppress(OSError):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)  # its holder ended and removed it meanwhile


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
