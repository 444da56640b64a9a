"""nuScenes' official splits: which scenes are train, val and test, and which ten are the mini set.

The lists are those of the data set's own development kit, written as ranges of scene numbers: 700 train, 150 val and
150 test scenes. The mini set takes eight scenes for training and two for validation, across the big splits.
"""

import os
from collections.abc import Collection, Iterable
from functools import cache

from syntheocc.engine.files import read_json

__all__ = ["OFFICIAL_SPLITS", "official_scenes", "read_split_file", "splits_of_version"]

_RANGES = {
    "train": "1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204 "
    "206-214 218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 467-469 "
    "471-472 474-480 499-502 504-515 517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698 "
    "700-701 703-719 726-728 730-731 733-741 744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 "
    "815-817 819-822 847-856 858 860-866 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992 "
    "994-1025 1044-1058 1074-1102 1104-1110",
    "val": "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 "
    "775 777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073",
    "test": "77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 "
    "833-842 844-846 932-933 935-943 1026-1043",
    "mini_train": "61 553 655 757 796 1077 1094 1100",
    "mini_val": "103 916",
}
OFFICIAL_SPLITS = tuple(_RANGES)


@cache
def official_scenes(split: str) -> tuple[str, ...]:
    """Scene names of an official split, in the list's order.

    Args:
        split: one of `OFFICIAL_SPLITS`.

    Example:
        >>> official_scenes("mini_val")
        ('scene-0103', 'scene-0916')
    """
    if split not in _RANGES:
        raise ValueError(f"no official split {split!r}; there are {', '.join(OFFICIAL_SPLITS)}")
    numbers: list[int] = []
    for part in _RANGES[split].split():
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(f"scene-{number:04d}" for number in numbers)


def splits_of_version(version: str, scenes: Collection[str]) -> dict[str, list[str]]:
    """How the official lists divide the scenes that a version's tables hold.

    `v1.0-mini` divides into train and val by the mini lists, every other version by the big ones.

    Args:
        version: the tables' folder, e.g. "v1.0-trainval".
        scenes: names of the scenes in the tables.

    Returns:
        "train", "val" and "test" -> scene names, those that have any.

    Raises:
        ValueError: a scene that the lists do not have.
    """
    prefix = "mini_" if version.endswith("mini") else ""
    lists = {
        split: set(official_scenes(prefix + split)) for split in ("train", "val", "test") if prefix + split in _RANGES
    }
    unknown = sorted(set(scenes).difference(*lists.values()))
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise ValueError(
            f"{shown}: no scene of nuScenes' official lists for {version}; give the division as --split-file, a JSON "
            'object {"train": [scene names], "val": [...]}'
        )
    found = {split: [name for name in scenes if name in members] for split, members in lists.items()}
    return {split: names for split, names in found.items() if names}


def read_split_file(path: str | os.PathLike, scenes: Iterable[str]) -> dict[str, list[str]]:
    """A user's own division: a JSON object of split name -> list of scene names.

    Args:
        path: the file.
        scenes: names of the scenes in the tables.

    Raises:
        ValueError: another kind of file, a split's name that cannot be a file's, or a scene that the tables lack or
            two splits have.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not document:
        raise ValueError(f'{path}: a split file is a JSON object {{"train": [scene names], ...}}')
    known, owner = set(scenes), dict[str, str]()
    for split, names in document.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: split {split!r} is no list of scene names")
        if not split or not all(c.isalnum() or c in "_-" for c in split):
            raise ValueError(f"{path}: split {split!r} is part of file names; use letters, digits, _ and -")
        for name in names:
            if name not in known:
                raise ValueError(f"{path}: split {split!r} names {name}, a scene that the tables do not have")
            if name in owner:
                raise ValueError(f"{path}: {name} is in {owner[name]!r} and in {split!r}; a scene has one split")
            owner[name] = split
    return {split: list(names) for split, names in document.items() if names}
