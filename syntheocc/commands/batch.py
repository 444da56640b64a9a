"""What every batch job does around its samples: share them over ranks, skip, report, go on, sum up.

A sample that cannot be read or made is reported and left out; the rest finishes, and the exit status says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syntheocc.engine.files import atomic_write_json, read_json
from syntheocc.engine.ranks import Ranks

if TYPE_CHECKING:
    from syntheocc.occupancy.data.frames import Frame

SHOWN_FAILURES = 20


@dataclass(frozen=True)
class Tally:
    """What became of the samples: how many were made, how many were there already, and token -> reason of the rest."""

    made: int
    skipped: int
    failed: Mapping[str, str]

    @property
    def status(self) -> int:
        """Exit status: 0 when every sample is there, 1 when some failed."""
        return 1 if self.failed else 0


def check_settings(
    path: Path, settings: Mapping[str, Any], remedy: str, unsaid: Mapping[str, Any] | None = None
) -> None:
    """Make sure that what a folder holds already was made with these settings.

    Args:
        path: the JSON file of the settings, written by `atomic_write_json` when the work starts.
        settings: everything the results depend on, as JSON values.
        remedy: what to do when they differ.
        unsaid: what the results were made with where that file is missing; None: there are no results.

    Raises:
        ValueError: the folder was made with other settings; the message names them.
    """
    before = read_json(path) if path.is_file() else unsaid
    if before is None:
        return
    changed = [
        f"{name}: {before.get(name)!r} there, {settings.get(name)!r} now"
        for name in sorted(before.keys() | settings.keys())
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ValueError(f"{path.parent} holds results of other settings ({'; '.join(changed)}); {remedy}")


def run_samples(
    frames: Sequence["Frame"],
    is_done: Callable[["Frame"], bool],
    make: Callable[["Frame"], None] | None,
    ranks: Ranks,
    description: str,
    settings: tuple[Path, Mapping[str, Any]],
    unreadable: Mapping[str, str] | None = None,
) -> Tally:
    """Make every sample that is not there yet; call it on all ranks, inside `ranks.group()`.

    Args:
        frames: all samples of the job, the same list on every rank.
        is_done: whether a sample's results are complete.
        make: makes one sample; a ValueError reports it as failed and the job goes on. None for a rank whose samples
            are all there.
        ranks: the process's place; each rank takes its share.
        description: shown before the progress bar of the main rank.
        settings: where the settings are written down before the first sample (see `check_settings`), and what.
        unreadable: token -> reason of the samples that are lost already; they count as failed.

    Returns:
        The tally over all ranks, on every rank.
    """
    from tqdm import tqdm

    if ranks.is_main:
        atomic_write_json(settings[0], dict(settings[1]))
    made, skipped, failed = 0, 0, {}
    cameras = dict.fromkeys(name for frame in frames for name in frame.cameras.names)
    share = ranks.share(frames)
    title = description if ranks.world == 1 else f"{description} (rank 0 of {ranks.world})"
    for frame in tqdm(share, desc=title, unit="sample", disable=not ranks.is_main):
        try:
            if is_done(frame):
                skipped += 1
            else:
                absent = [name for name in cameras if name not in frame.cameras.names]
                if absent:
                    raise ValueError(f"has no {', '.join(absent)}, which other samples have; add it to the infos")
                assert make is not None, "a rank without a maker has unfinished samples"
                make(frame)
                made += 1
        except ValueError as error:
            failed[frame.token] = str(error)
            tqdm.write(f"sample {frame.token} failed: {error}")
    parts = ranks.gather((made, skipped, failed))
    merged = {token: reason for _, _, reasons in parts for token, reason in reasons.items()}
    order = [frame.token for frame in frames if frame.token in merged]
    lost = dict(unreadable or {}) | {token: merged[token] for token in order}
    return Tally(sum(part[0] for part in parts), sum(part[1] for part in parts), lost)


def print_summary(tally: Tally, what: str, where: Path | str) -> None:
    """The job's last lines: what was written and where, and the samples that are missing from it."""
    there = f", {tally.skipped} were there already" if tally.skipped else ""
    lost = f", {len(tally.failed)} failed" if tally.failed else ""
    count = "1 sample" if tally.made == 1 else f"{tally.made} samples"
    print(f"wrote {what} of {count} to {where}{there}{lost}")
    for token, reason in list(tally.failed.items())[:SHOWN_FAILURES]:
        print(f"  failed: {token}: {reason}")
    if len(tally.failed) > SHOWN_FAILURES:
        print(f"  ... and {len(tally.failed) - SHOWN_FAILURES} more, each named above where it failed")
