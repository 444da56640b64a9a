"""A tiny SyntheOcc step and a batch for it; a tiny Stable Diffusion folder, and a data set of two scenes."""

import inspect
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler, UNet2DConditionModel

from syntheocc.models.presets import tiny_components
from syntheocc.occupancy import SYNTHEOCC_COARSE, OccupancyGrid
from syntheocc.occupancy.data.frames import Boxes, Frame
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.occupancy_files import occupancy_path, write_occupancy
from syntheocc.training.batch import TrainingBatch
from syntheocc.training.config import TrainConfig
from syntheocc.training.dropout import ConditionDropout
from syntheocc.training.step import SyntheOccStep
from syntheocc.worlds.street import LIDAR2EGO, nominal_rig


@pytest.fixture
def make_step():
    """A function that makes a step of tiny networks; MPIs of eight planes."""

    def make(prediction_type: str = "epsilon", dropout=(0.0, 0.0), wake: bool = True, video=False, **kwargs):
        parts = tiny_components(seed=0, num_planes=8, step=2.0, near=2.0, cross_frame_attention=video)
        schedule = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
        )
        if wake:  # the layers that start at zero, or nothing trained would touch the loss
            generator = torch.Generator().manual_seed(1)
            for parameter in [*parts["unet"].parameters(), *parts["controlnet"].parameters()]:
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.02, generator=generator)
        empty = parts["tokenizer"]("", padding="max_length", max_length=12, return_tensors="pt").input_ids[0]
        kwargs = {"max_train_steps": 100, "empty_input_ids": empty, "dropout": ConditionDropout(*dropout), **kwargs}
        step = SyntheOccStep(
            parts["unet"], parts["controlnet"], parts["vae"], parts["text_encoder"], schedule, **kwargs
        )
        step.tokenizer = parts["tokenizer"]
        return step

    return make


@pytest.fixture
def make_batch():
    """A function that makes a batch of pictures 16x24 with MPIs 2x3 of eight planes."""

    def make(step, samples: int = 2, views: int = 3, frames: int = 1, seed: int = 0, **kwargs) -> TrainingBatch:
        generator = torch.Generator().manual_seed(seed)
        rows = samples * frames
        captions = [f"a street by {'night' if row % 2 else 'day'}" for row in range(rows)]
        ids = step.tokenizer(captions, padding="max_length", max_length=12, return_tensors="pt").input_ids
        labels = torch.randint(0, 17, (rows, views, 8, 2, 3), generator=generator, dtype=torch.uint8)
        labels[torch.rand(labels.shape, generator=generator) < 0.7] = 0
        plane = (labels != 0).int().argmax(2)
        nearest = labels.gather(2, plane[:, :, None].long())[:, :, 0]
        fields = {
            "images": torch.rand(rows, views, 3, 16, 24, generator=generator) * 2 - 1,
            "input_ids": ids[:, None].expand(-1, views, -1).contiguous(),
            "mpi_labels": labels,
            "nearest": nearest,
            "nearest_plane": plane.to(torch.int16),
            "neighbors": torch.tensor([[(v - 1) % views, (v + 1) % views] for v in range(views)]),
            "tokens": [f"row{row}" for row in range(rows)],
            "frames": frames,
        }
        return TrainingBatch(**{**fields, **kwargs})

    return make


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory) -> Path:
    """A folder in the layout of Stable Diffusion 2.1, with a stock UNet and PNDM, scaled down to half a million."""
    folder = tmp_path_factory.mktemp("sd")
    parts = tiny_components(seed=0)
    torch.manual_seed(0)
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    stock = UNet2DConditionModel.from_config({k: v for k, v in parts["unet"].config.items() if k in known})
    stock.save_pretrained(folder / "unet")
    for name in ("vae", "text_encoder", "tokenizer"):
        parts[name].save_pretrained(folder / name)
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    PNDMScheduler(**noise, skip_prk_steps=True).save_pretrained(folder / "scheduler")
    return folder


@dataclass
class StreetData:
    """Key frames with pictures, labels of kind syntheocc_coarse, and an info pickle."""

    root: Path
    info: Path
    frames: list[Frame]
    sd: Path

    def config(self, **changes) -> TrainConfig:
        """A job on these samples: 48x32 pictures, two samples a step, nothing but the essentials."""
        settings = {
            "dataroot_path": self.root,
            "info_path": (str(self.info),),
            "occ_kind": "syntheocc_coarse",
            "pretrained_model_name_or_path": str(self.sd),
            "output_dir": self.root / "out",
            "width": 48,
            "height": 32,
            "global_batch_size": 2,
            "max_train_steps": 2,
            "lr_warmup_steps": 0,
            "validation_steps": 0,
            "dataloader_num_workers": 0,
            "num_inference_steps": 2,
        }
        return TrainConfig(**{**settings, **changes})

    def label(self, i: int) -> Path:
        return occupancy_path(self.root, self.frames[i], "syntheocc_coarse")


@pytest.fixture
def street(tmp_path, sd_folder) -> StreetData:
    """Two scenes of three key frames half a second apart; pictures of half the cameras' size, in four flat fields."""
    from PIL import Image

    root, frames = tmp_path / "nuscenes", []
    for i in range(6):
        scene, stamp = f"scene-000{i // 3}", 1_532_402_927_000_000 + 500_000 * i + 60_000_000 * (i // 3)
        rig = nominal_rig(80, 144)
        paths = {name: root / "samples" / name / f"n000__{name}__{stamp}.png" for name in rig.names}
        for j, path in enumerate(paths.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = np.full((40, 72, 3), (40 * i, 30 * j, 120), dtype=np.uint8)
            picture[20:] = (10, 200, 20 * j)
            Image.fromarray(picture).save(path)
        labels = np.zeros(SYNTHEOCC_COARSE.spec.shape, dtype=np.uint8)
        labels[:, :, 5] = 11  # a road, and a car that drives ahead
        labels[96:104, 105 + 8 * i : 115 + 8 * i, 6:9] = 1
        grid = OccupancyGrid(labels, *SYNTHEOCC_COARSE, grid2ego=torch.from_numpy(LIDAR2EGO))
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = 11.0 + 5 * i
        names = ("car",) if i < 4 else ("bus",)
        frame = Frame(
            token=f"token{i}",
            scene=scene,
            timestamp_us=stamp,
            cameras=rig,
            image_paths=paths,
            lidar_path=root / "samples" / "LIDAR_TOP" / f"n000__LIDAR_TOP__{stamp}.pcd.bin",
            lidar2ego=torch.from_numpy(LIDAR2EGO),
            ego2global=torch.eye(4, dtype=torch.float64),
            boxes=Boxes(pose[None], torch.tensor([[4.0, 1.5, 1.5]]), names),
            caption=f"a street in {scene}",
        )
        write_occupancy(grid, occupancy_path(root, frame, "syntheocc_coarse"), "syntheocc_coarse")
        frames.append(frame)
    info = root / "infos.pkl"
    write_infos(info, frames, style="openoccupancy", data_root=root)
    return StreetData(root, info, frames, sd_folder)
