"""Checkpoint folders that are whole or absent, whenever the job is killed.

A checkpoint is written into a hidden sibling, flushed to the disk and renamed to `checkpoint-<step>`; a folder of
that name is therefore always complete. Old ones are renamed away before they are deleted, for the same reason. One
process writes; any number may read. Names are those of diffusers' training scripts.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r"checkpoint-(0|[1-9]\d*)")
# Hidden names: being written, replaced by a newer one of that name, and being deleted.
_HIDDEN = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old|gone)")


class CheckpointFolder:
    """The checkpoints of one job: `<root>/checkpoint-<step>`.

    Args:
        root: the job's output folder; made by the first save.
        limit: how many checkpoints stay; None: all of them.

    Example:
        >>> checkpoints = CheckpointFolder(Path("out"), limit=2)
        >>> checkpoints.save(100, lambda folder: save_file(weights, folder / "weights.safetensors"))
        PosixPath('out/checkpoint-100')
        >>> checkpoints.latest()
        PosixPath('out/checkpoint-100')
    """

    def __init__(self, root: Path, limit: int | None = None):
        if limit is not None and limit < 1:
            raise ValueError(f"a limit of {limit} checkpoints would keep none; give at least 1, or None for all")
        self.root = Path(root)
        self.limit = limit

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Make `checkpoint-<step>`: `write` fills an empty folder, which then takes its name in one move.

        A checkpoint of that step that is already there is replaced. When `write` raises, nothing has changed.
        """
        with self.writing(step) as temporary:
            write(temporary)
        return self.path(step)

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """:meth:`save` for writers that several processes fill: the folder to fill, published after the block."""
        if step < 0:
            raise ValueError(f"a checkpoint's step is not negative, got {step}")
        self.root.mkdir(parents=True, exist_ok=True)
        self.recover()
        temporary = self._hidden(f"checkpoint-{step}", "tmp")
        temporary.mkdir()
        try:
            with _write_errors(self.path(step)):
                yield temporary
            _flush_tree(temporary)
            self._publish(temporary, self.path(step))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune(step)

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or would be."""
        return self.root / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        if not self.root.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.root.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def latest(self) -> Path | None:
        """The checkpoint of the highest step; None when there is none."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def resolve(self, which: str | None) -> Path | None:
        """The checkpoint that a user means.

        Args:
            which: None: none; "latest": the newest, None when there is none yet (a job that restarts itself passes
                "latest" the first time too); a folder's name in `root` ("checkpoint-500"), or a path to one.

        Raises:
            ValueError: the named checkpoint does not exist.
        """
        if not which:
            return None
        if which == "latest":
            return self.latest()
        for candidate in (self.root / which, Path(which)):
            if _NAME.fullmatch(candidate.name) and candidate.is_dir():
                return candidate
        known = ", ".join(self.path(step).name for step in self.steps()) or "no checkpoints"
        raise ValueError(f"{which}: no such checkpoint; {self.root} has {known}")

    def recover(self) -> None:
        """Tidy up after a killed writer: a checkpoint that was being replaced returns, leftovers are deleted.

        Only for the process that writes here, before its first save (which calls this).
        """
        if not self.root.is_dir():
            return
        for entry in sorted(self.root.iterdir()):
            hidden = _HIDDEN.fullmatch(entry.name) if entry.is_dir() else None
            if hidden and hidden[2] == "old" and not (self.root / hidden[1]).exists():
                entry.rename(self.root / hidden[1])
            elif hidden:
                self._discard(entry, hidden[1])

    def publish(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill a folder and move what it made, entry by entry, into `root`, replacing older entries.

        Folders come first and files last, so that an index (`model_index.json`) appears when what it lists is there.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self._hidden("published", "tmp")
        temporary.mkdir()
        try:
            with _write_errors(self.root):
                write(temporary)
            _flush_tree(temporary)
            for entry in sorted(temporary.iterdir(), key=lambda entry: (entry.is_file(), entry.name)):
                self._publish(entry, self.root / entry.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _hidden(self, name: str, kind: str) -> Path:
        return self.root / f".{name}.{secrets.token_hex(4)}.{kind}"

    def _publish(self, temporary: Path, target: Path) -> None:
        """Rename over the target. A folder cannot replace a folder, so an older one steps aside first."""
        replaced = None
        if target.is_dir():
            replaced = self._hidden(target.name, "old")
            target.rename(replaced)
        os.replace(temporary, target)
        _flush(self.root)
        if replaced is not None:
            self._discard(replaced, target.name)

    def _discard(self, entry: Path, name: str) -> None:
        """Delete a folder that nobody may take for whole again: it gets a name that says so first."""
        gone = self._hidden(name, "gone")
        entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _prune(self, saved: int) -> None:
        """Delete the oldest checkpoints beyond the limit, never the one that was just saved."""
        if self.limit is None:
            return
        steps = self.steps()
        surplus = [step for step in steps if step != saved][: len(steps) - self.limit]
        for step in surplus:
            self._discard(self.path(step), f"checkpoint-{step}")


@contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    """Safetensors has an error of its own for a full disk; here it becomes an OSError that names the target."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error


def _flush_tree(folder: Path) -> None:
    """Flush every file and folder below to the disk, so that the rename cannot overtake the content."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _flush(Path(parent) / name)
        _flush(Path(parent))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; its files are flushed all the same.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
