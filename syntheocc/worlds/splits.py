"""Which scenes a world of a given size has: names, splits and seeds.

The names are those of nuScenes' own splits, so that programs which carry the official lists sort our scenes as we do.
"""

from typing import NamedTuple

from syntheocc.worlds.timeline import token_of

__all__ = ["ScenePlan", "plan_scenes", "scene_seed"]

# nuScenes' split lists as ranges of scene numbers, the first ones of each (the lists go on; see `_number`).
_OFFICIAL = {
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
}
# Scenes beyond the official lists are numbered from here, a block for each split.
_BEYOND = {"train": 2000, "val": 8000, "test": 9000}


class ScenePlan(NamedTuple):
    """One scene to make."""

    name: str
    split: str
    seed: int


def plan_scenes(train: int, val: int = 0, test: int = 0, seed: int = 0) -> list[ScenePlan]:
    """The scenes of a world; a larger world holds the scenes of a smaller one.

    Raises:
        ValueError: a negative number, or more scenes than there are names (6700 train, 1150 val, 1150 test).
    """
    out = []
    for split, count in (("train", train), ("val", val), ("test", test)):
        if count < 0:
            raise ValueError(f"a number of {split} scenes cannot be negative, got {count}")
        numbers = _official(split)
        room = {"train": 6000, "val": 1000, "test": 1000}[split]
        numbers = numbers + list(range(_BEYOND[split], _BEYOND[split] + room))
        if count > len(numbers):
            raise ValueError(f"{count} {split} scenes were asked for; there are names for {len(numbers)}")
        out += [ScenePlan(f"scene-{numbers[i]:04d}", split, scene_seed(seed, split, i)) for i in range(count)]
    return out


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of a split's scene `index`, 0 .. 2^31 - 1."""
    return int(token_of("world", seed, split, index)[:8], 16) >> 1


def _official(split: str) -> list[int]:
    numbers: list[int] = []
    for part in _OFFICIAL[split].split():
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
