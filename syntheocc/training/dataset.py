"""Key frames as training samples: pictures or cached latents, texts, and occupancy or MPI files.

A sample is a clip of F neighbouring key frames of one scene, one frame by default. What cannot be read becomes a
`BadSample` with its reason, and training goes on with the next one.

Legend: S rows (samples x frames), F frames, V views, L tokens, D planes, K neighbours, H W pixels, h w latent pixels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from syntheocc.engine.loading import BadSample
from syntheocc.occupancy import CameraRig, OccupancyGrid, SemanticMPI
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.mpi_files import read_mpi_files
from syntheocc.occupancy.data.samples import mpi_stems
from syntheocc.pipelines.sources import ConditionSpec, GridSource, MPISource
from syntheocc.training.batch import TrainingBatch
from syntheocc.training.captions import Captions
from syntheocc.training.config import TrainConfig
from syntheocc.training.latents import LatentCache

__all__ = ["ClipDataset", "FrameReader", "Row", "collate", "make_clips", "read_pictures"]

# Key frames of an unknown order count as neighbours up to this distance in time: those of nuScenes are 0.5 s apart,
# and 1 s where one between them is missing.
MAX_GAP_US = 800_000


@dataclass
class Row:
    """One frame, read.

    Args:
        token: its name.
        rig: its cameras.
        input_ids: int64 [V, L], or [1, L] where all views share a text.
        images: uint8 [V, 3, H, W], or
        latents: [V, 2C, h, w], the VAE's moments.
        grid: its occupancy, or
        mpi: its MPI from files.
    """

    token: str
    rig: CameraRig
    input_ids: Tensor
    images: Tensor | None = None
    latents: Tensor | None = None
    grid: OccupancyGrid | None = None
    mpi: SemanticMPI | None = None


class FrameReader:
    """Reads what a training step needs of a frame.

    Args:
        config: where conditions come from, and the pictures' size.
        spec: what conditions the ControlNet wants.
        tokenizer: of the texts.
        latents: cached latents, read in place of pictures.
        factor: pixels of a latent pixel's side.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: ConditionSpec,
        tokenizer: Any,
        latents: LatentCache | None = None,
        factor: int = 8,
    ):
        self.config, self.spec, self.tokenizer, self.latents = config, spec, tokenizer, latents
        self.captions = Captions.from_file(config.prompt, config.use_captions, config.caption_path)
        self.height, self.width = config.height // factor, config.width // factor
        self._ids: dict[str, Tensor] = {}

    def __call__(self, frame: Frame) -> Row:
        """Read a frame.

        Raises:
            ValueError: a file is missing or damaged; the message names it.
        """
        row = Row(frame.token, frame.cameras, self.tokenize(frame))
        if self.latents is not None:
            row.latents = self.latents.read(frame)
        else:
            row.images = read_pictures(frame, self.config.height, self.config.width)
        source: MPISource | GridSource
        if self.config.condition_kind == "mpi":
            row.mpi = self.read_mpi(frame)
            source = MPISource(row.mpi, frame.cameras)
        else:
            row.grid = self.config.read_grid(frame, self.config.condition_kind)  # type: ignore[arg-type]
            source = GridSource(row.grid, frame.cameras)
        source.check(self.spec, self.height, self.width)
        return row

    def read_mpi(self, frame: Frame) -> SemanticMPI:
        """The MPI of a frame from its files."""
        assert self.config.mtp_path is not None
        stems = mpi_stems(frame, self.config.dataroot_path, self.config.mtp_path)
        return read_mpi_files(stems, self.spec.planes, self.spec.pixel_origin)

    def tokenize(self, frame: Frame) -> Tensor:
        """Token ids of a frame's texts: int64 [1, L] where they are all the same, else [V, L]."""
        texts = self.captions.of(frame)
        texts = texts[:1] if len(set(texts)) == 1 else texts
        return torch.stack([self._tokens(text) for text in texts])

    def _tokens(self, text: str) -> Tensor:
        if text not in self._ids:
            options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            length = self.tokenizer.model_max_length
            self._ids[text] = self.tokenizer(text, max_length=length, **options).input_ids[0]
        return self._ids[text]


class ClipDataset(Dataset):
    """Clips of frames; `dataset[i]` is F rows, or a `BadSample` that names what cannot be read.

    Args:
        clips: the frames of every sample (`make_clips`).
        read: reads one frame.
    """

    def __init__(self, clips: Sequence[Sequence[Frame]], read: FrameReader):
        self.clips = clips
        self.read = read
        # All samples of a batch have the same views: those that most of the frames have.
        self.cameras = Counter(frame.cameras.names for clip in clips for frame in clip).most_common(1)[0][0]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> list[Row] | BadSample:
        rows = []
        for frame in self.clips[index]:
            try:
                if frame.cameras.names != self.cameras:
                    raise ValueError(
                        f"has the cameras {', '.join(frame.cameras.names)}, the data set {', '.join(self.cameras)}"
                    )
                rows.append(self.read(frame))
            except (ValueError, OSError) as error:
                return BadSample(frame.token, str(error))
        return rows


def make_clips(frames: Sequence[Frame], num_frames: int) -> list[tuple[Frame, ...]]:
    """All runs of `num_frames` neighbouring key frames of a scene, in the order of their first frame.

    Frames are neighbours when the source says so (`Frame.next`), or, where it is silent, when they follow each other
    in their scene within 0.8 s.

    Raises:
        ValueError: no scene is so long.
    """
    if num_frames == 1:
        return [(frame,) for frame in frames]
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene, []).append(frame)
    following: dict[str, Frame] = {}
    for members in scenes.values():
        members = sorted(members, key=lambda frame: frame.timestamp_us)
        for first, second in zip(members, members[1:], strict=False):
            if first.next == second.token if first.next else second.timestamp_us - first.timestamp_us <= MAX_GAP_US:
                following[first.token] = second
    clips = []
    for frame in frames:
        clip = [frame]
        while len(clip) < num_frames and clip[-1].token in following:
            clip.append(following[clip[-1].token])
        if len(clip) == num_frames:
            clips.append(tuple(clip))
    if not clips:
        raise ValueError(
            f"no scene of the {len(scenes)} has {num_frames} neighbouring key frames; give infos of whole scenes, or "
            "a smaller --num_frames"
        )
    return clips


def read_pictures(frame: Frame, height: int, width: int) -> Tensor:
    """The pictures of a frame, resized with a bilinear filter: uint8 [V, 3, height, width].

    Raises:
        ValueError: one is missing or damaged, or shows another part of the world than its camera: the sides' ratio
            is not the camera's.
    """
    from PIL import Image

    pictures = []
    for name, camera in frame.cameras.items():
        path = frame.image_paths.get(name)
        if path is None:
            raise ValueError(f"{name} has no picture; make the infos again")
        try:
            with Image.open(path) as image:
                scale_x, scale_y = image.width / camera.width, image.height / camera.height
                pixels = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        except Exception as error:  # decoders raise whatever damaged bytes lead them to
            raise ValueError(f"{path}: cannot be read as a picture ({error}); copy it again") from error
        # A rig renders MPIs for the camera's whole image, of whatever size: a cropped picture would not lie on it.
        if not 0.98 < scale_x / scale_y < 1.02:
            raise ValueError(
                f"{path} is not the whole image of its camera, which is {camera.width}x{camera.height}: the infos' "
                "intrinsics are of another picture; make the infos again, or give the original pictures"
            )
        pictures.append(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))
    return torch.stack(pictures).contiguous()


def check_mpi_folder(folder: Path, wanted: dict[str, Any], made: dict[str, Any]) -> None:
    """Raise ValueError when a folder of MPI files was made for another picture size or pixel origin."""
    wrong = [name for name in wanted if made[name] != wanted[name]]
    if wrong:
        raise ValueError(
            f"the MPI files of {folder} have {', '.join(f'{name} {made[name]}' for name in wrong)}, training wants "
            f"{', '.join(str(wanted[name]) for name in wrong)}; make them with utils/gen_mtp.py "
            f"{' '.join(f'--{name}={wanted[name]}' for name in wrong)} (and another --mtp_path), or leave --mtp_path "
            "out to have them rendered on the way"
        )


def collate(samples: Sequence[Sequence[Row]]) -> TrainingBatch:
    """Clips of rows as a batch; rows are (sample frame), frames fastest."""
    rows = [row for clip in samples for row in clip]
    first = rows[0]
    # Columns of padding cost an attention each and change nothing.
    neighbors = torch.stack([row.rig.neighbors(2) for row in rows])
    neighbors = neighbors[..., (neighbors >= 0).flatten(0, 1).any(dim=0)]
    if all(torch.equal(table, neighbors[0]) for table in neighbors):
        neighbors = neighbors[0]
    views = max(row.input_ids.shape[0] for row in rows)
    condition: dict[str, Any]
    if first.mpi is not None:
        mpi = SemanticMPI.stack([row.mpi for row in rows if row.mpi is not None])
        condition = {"mpi_labels": mpi.labels, "nearest": mpi.nearest, "nearest_plane": mpi.nearest_plane}
    else:
        condition = {"grids": [row.grid for row in rows], "rigs": [row.rig for row in rows]}
    images, latents = ([getattr(row, name) for row in rows] for name in ("images", "latents"))
    return TrainingBatch(
        input_ids=torch.stack([row.input_ids.expand(views, -1) for row in rows]),
        neighbors=neighbors,
        tokens=[row.token for row in rows],
        frames=len(samples[0]),
        images=torch.stack(images) if first.images is not None else None,
        latents=torch.stack(latents) if first.images is None else None,
        **condition,
    )
