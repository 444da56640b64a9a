"""What text a picture is trained and drawn with: one prompt for all, or captions where the data has them.

A captions file is JSON, by sample token or by picture name (the more particular one wins):

    {"<sample token>": "a rainy night in Boston",
     "<sample token>": {"CAM_FRONT": "a red bus ahead", "CAM_BACK": "an empty road"},
     "n015-2018-07-24__CAM_FRONT__1532402927612460.jpg": "a red bus ahead"}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syntheocc.occupancy.data.frames import Frame

__all__ = ["Captions"]


@dataclass(frozen=True)
class Captions:
    """The texts of samples.

    Args:
        prompt: of whatever has no caption.
        use_captions: take the sample's own caption (nuScenes' scene description, the world's sentence) before it.
        written: token or picture name -> text, or camera -> text; taken before both.
    """

    prompt: str
    use_captions: bool = False
    written: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_file(cls, prompt: str, use_captions: bool, path: str | Path | None) -> "Captions":
        """With the captions of a JSON file; None: no such file.

        Raises:
            ValueError: the file is missing or damaged, or an entry is no text.
        """
        if path is None:
            return cls(prompt, use_captions)
        from syntheocc.engine.files import read_json

        written = read_json(path)
        if not isinstance(written, dict):
            raise ValueError(f"{path}: captions are a JSON object token -> text, got a {type(written).__name__}")
        for name, entry in written.items():
            texts = entry.values() if isinstance(entry, dict) else [entry]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{path}: the caption of {name} is {entry!r}; give a text, or texts by camera")
        return cls(prompt, use_captions, written)

    def of(self, frame: "Frame") -> list[str]:
        """The text of every view, in view order."""
        own = frame.caption if self.use_captions and frame.caption else self.prompt
        entry = self.written.get(frame.token, own)
        texts = []
        for camera in frame.cameras.names:
            picture = frame.image_paths.get(camera)
            text = entry.get(camera, own) if isinstance(entry, dict) else entry
            texts.append(self.written.get(picture.name, text) if picture is not None else text)
        return texts
