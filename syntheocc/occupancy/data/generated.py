"""What a generated data set says of itself: `<root>/generated/manifest.jsonl`, one line a sample.

`syntheocc generate --as-dataset` writes it (docs/loop.md 2). A generated tree has the tokens, scenes and file names of
the original; the manifest is what tells them apart, and says which samples were edited.
"""

import hashlib
import json
import os
from pathlib import Path

from syntheocc.engine.files import not_opened

__all__ = ["NOTES", "edited_samples", "manifest_digest", "manifest_path"]

NOTES = "generated"
"""Folder below the root of a generated data set for what the original has not."""


def manifest_path(root: str | os.PathLike) -> Path:
    """The manifest of a data root, whether it is there or not."""
    return Path(root) / NOTES / "manifest.jsonl"


def manifest_digest(root: str | os.PathLike) -> str | None:
    """16 hex digits of the manifest (seeds, weights, prompts, recipes); None for a tree that has none."""
    path = manifest_path(root)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def edited_samples(root: str | os.PathLike) -> dict[str, str]:
    """Token -> name of the recipe, of the samples that were generated from edited occupancy.

    Raises:
        ValueError: the manifest cannot be read.
    """
    path = manifest_path(root)
    if not path.is_file():
        return {}
    found = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("recipe"):
                found[str(row["token"])] = str(row["recipe"]["name"])
    except OSError as error:
        raise not_opened(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is no manifest of a generated data set ({error}); generate it again") from error
    return found
