"""Finding the files that an info pickle or a table names, whatever prefix they were written with."""

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

__all__ = ["ImageLocator"]


class ImageLocator:
    """Turns a path as written by whoever made the infos into a path on this machine.

    The candidates, in order (the search rule):

    1. as given (absolute, or relative to the working directory; but `samples/...` and `sweeps/...` are a data root's:
       whoever works in one data root and reads another must not get the first one's pictures);
    2. relative to the data root;
    3. what follows the last `samples` or `sweeps` component, under the root, that component included
       (`./data/nuscenes/samples/CAM_FRONT/x.jpg` -> `<root>/samples/CAM_FRONT/x.jpg`);
    4. `<root>/samples/<channel>/<file name>`.

    The first one that exists wins. Data sets are uniform, so the rule that found the last file is tried first.

    Args:
        root: the data root, the folder that holds `samples/` (and `sweeps/`); None leaves only rule 1.

    Raises:
        ValueError: the root is given and is not a folder.

    Example:
        >>> locate = ImageLocator("data/nuscenes")  # doctest: +SKIP
        >>> path, searched = locate("x.jpg", "CAM_FRONT")  # doctest: +SKIP
    """

    def __init__(self, root: str | os.PathLike | None):
        self.root = None if root is None else Path(root)
        if self.root is not None and not self.root.is_dir():
            raise ValueError(f"data root {self.root} is not a folder; give the folder that holds samples/")
        self._rules: list[Callable[[PurePosixPath, str], Path | None]] = [
            self._as_given,
            self._below_root,
            self._from_samples,
            self._by_channel,
        ]

    def candidates(self, given: str, channel: str) -> list[Path]:
        """Where a file may lie, in the order of the search rule, without repeats."""
        path = PurePosixPath(given.replace("\\", "/"))
        return list(dict.fromkeys(found for rule in self._rules if (found := rule(path, channel)) is not None))

    def __call__(self, given: str, channel: str) -> tuple[Path, list[Path]]:
        """Locate one file.

        Args:
            given: the path as the source spells it.
            channel: the sensor's name, e.g. "CAM_FRONT".

        Returns:
            The path that exists and an empty list; or, where none exists, the likeliest place (rule 3's, else the last
            rule's) and every place that was looked at.
        """
        path = PurePosixPath(given.replace("\\", "/"))
        for i, rule in enumerate(self._rules):
            found = rule(path, channel)
            if found is not None and found.is_file():
                if i:
                    self._rules.insert(0, self._rules.pop(i))
                return found, []
        searched = self.candidates(given, channel)
        # A file that no place has is told by where its name says that it lies: below sweeps/, or samples/.
        return self._from_samples(path, channel) or self._by_channel(path, channel) or searched[0], searched

    def _as_given(self, path: PurePosixPath, channel: str) -> Path | None:
        return None if self.root is not None and path.parts[:1] in (("samples",), ("sweeps",)) else Path(path)

    def _below_root(self, path: PurePosixPath, channel: str) -> Path | None:
        return None if path.is_absolute() or self.root is None else self.root / path

    def _from_samples(self, path: PurePosixPath, channel: str) -> Path | None:
        starts = [i for i, part in enumerate(path.parts) if part in ("samples", "sweeps")]
        return self.root.joinpath(*path.parts[starts[-1] :]) if starts and self.root is not None else None

    def _by_channel(self, path: PurePosixPath, channel: str) -> Path | None:
        return None if self.root is None else self.root / "samples" / channel / path.name
