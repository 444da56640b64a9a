"""One sample of ``syntheocc generate``: its inputs read, its views generated, its files written."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syntheocc.commands.edit_sample import edited_sample, read_recipe
from syntheocc.commands.mpi import mpi_settings, mpi_stems
from syntheocc.training.captions import Captions

if TYPE_CHECKING:
    from syntheocc.commands.generate import GenerateConfig
    from syntheocc.commands.outputs import OutputFolder
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.pipelines import SyntheOccPipeline
    from syntheocc.pipelines.sources import ConditionSpec

__all__ = ["SampleMaker", "mpi_folder", "sample_seed"]


def sample_seed(seed: int, token: str) -> int:
    """The seed of one sample's noise, in 0 .. 2^63 - 1: the same whoever makes it, and unlike its neighbours'."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{token}".encode()).digest()[:8], "big") >> 1


class SampleMaker:
    """Makes one sample: reads its inputs, generates, writes; a ValueError leaves it undone.

    Args:
        config: of the job.
        pipe: on its device.
        outputs: where the files go.
        captions: of the samples.
        weights: SHA-256 of the model, for a data set's manifest.

    Raises:
        ValueError: MPI files that suit neither the model nor the size of a view.
    """

    def __init__(
        self,
        config: "GenerateConfig",
        pipe: "SyntheOccPipeline",
        outputs: "OutputFolder",
        captions: Captions,
        weights: str | None = None,
    ):
        from syntheocc.pipelines.sources import condition_spec

        self.config, self.pipe, self.outputs, self.captions = config, pipe, outputs, captions
        self.weights = weights
        self.recipe = None if config.edit is None else read_recipe(config.edit)
        self.spec = condition_spec(pipe.controlnet)
        if config.occ_kind == "mpi" and not config.occupancy:
            _check_mpi_files(config, self.spec, pipe.vae_scale_factor)

    def __call__(self, frame: "Frame") -> None:
        """Make the sample of a frame.

        Raises:
            ValueError: labels, pictures or cameras that are missing, damaged, or not the sample's own.
        """
        import torch

        from syntheocc.commands.dataset import DatasetFolder
        from syntheocc.commands.outputs import read_photos
        from syntheocc.occupancy.data.belonging import check_pictures
        from syntheocc.occupancy.pictures import condition_pictures

        config = self.config
        for camera in frame.cameras.names:  # a sample without names is found before it costs anything
            self.outputs.view_path(frame, camera)
        photos = read_photos(frame) if config.real_row else []
        if config.as_dataset is not None:
            check_pictures(frame)
        condition, labels = self._read_condition(frame)
        original, source = frame, labels.get("source")
        if self.recipe is not None:
            frame, condition["occupancy"], labels = edited_sample(self.recipe, frame, condition["occupancy"], labels)
        texts = self.captions.of(frame)
        prompt = texts[0] if len(set(texts)) == 1 else texts
        seed = sample_seed(config.seed, frame.token)
        output = self.pipe(
            [texts],
            **condition,
            cameras=frame.cameras,
            height=config.height,
            width=config.width,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.cfg_scale,
            mpi_guidance_scale=config.mpi_guidance_scale,
            controlnet_conditioning_scale=config.controlnet_conditioning_scale,
            negative_prompt=config.negative_prompt,
            # drawn on the CPU, so that every device starts from the same noise
            generator=[torch.Generator().manual_seed(seed)],
        )
        images = output.images[0]
        views = self.outputs.write_views(frame, images)
        drawn = []
        if config.as_dataset is None:
            drawn.append(self.outputs.write_strip(frame, condition_pictures(output.mpi[0]), images, photos))
            if "occupancy" in condition:
                drawn.append(self.outputs.write_solid(frame, condition["occupancy"]))
        if self.recipe is not None and isinstance(self.outputs, DatasetFolder):
            label_files = self.outputs.write_edited(self.recipe, original, config.occ_kind, source)
        else:
            label_files = self.outputs.write_labels(frame, **labels)
        record = {
            "token": frame.token,
            "scene": frame.scene,
            "timestamp_us": frame.timestamp_us,
            "seed": seed,
            "prompt": prompt,
            "views": views,
            "files": [*views.values(), *drawn, *label_files],
        }
        if config.as_dataset is not None:
            record |= self._provenance(source)
        self.outputs.write_record(frame, record)

    def _provenance(self, source: Path | None) -> dict[str, Any]:
        """What a line of a data set's manifest says beside the sample itself; `source`: the condition's file."""
        from syntheocc.commands.dataset import code_version, recipe_note

        config = self.config
        if source is not None and source.is_relative_to(config.dataroot_path):
            source = source.relative_to(config.dataroot_path)
        return {
            "recipe": recipe_note(self.recipe),
            "condition": {"kind": config.occ_kind, "file": None if source is None else source.as_posix()},
            "weights": {"path": config.model_path_infer, "sha256": self.weights},
            "sampler": {
                "steps": config.num_inference_steps,
                "guidance_scale": config.cfg_scale,
                "mpi_guidance_scale": config.mpi_guidance_scale,
                "controlnet_conditioning_scale": config.controlnet_conditioning_scale,
                "height": config.height,
                "width": config.width,
                "precision": str(self.pipe.unet.dtype).removeprefix("torch."),
            },
            **code_version(),
        }

    def _read_condition(self, frame: "Frame") -> tuple[dict[str, Any], dict[str, Any]]:
        """The pipeline's condition, and what `OutputFolder.write_labels` needs beside the frame."""
        config = self.config
        if config.occupancy:
            return {"occupancy": config.read_grid(frame, "syntheocc")}, {}
        if config.occ_kind == "mpi":
            from syntheocc.occupancy.data.mpi_files import read_mpi_files

            stems = mpi_stems(frame, config.dataroot_path, config.mtp_path)
            return {"mpi": read_mpi_files(stems, self.spec.planes, self.spec.pixel_origin)}, {}
        from syntheocc.occupancy.data.belonging import check_belongs, check_sees

        grid = config.read_grid(frame, config.occ_kind)
        check_sees(grid, frame.cameras, frame.token)
        if config.occ_kind == "lidar":
            return {"occupancy": grid}, {"grid": grid, "kind": "syntheocc"}
        if config.lidar_check:
            check_belongs(grid, frame)
        from syntheocc.occupancy.data.occupancy_files import occupancy_path

        source = occupancy_path(config.occupancy_root(config.occ_kind), frame, config.occ_kind)
        return {"occupancy": grid}, {"kind": config.occ_kind, "source": source}


def mpi_folder(config: "GenerateConfig") -> Path:
    """The folder of the MPI files; ValueError when it is missing."""
    folder = Path(config.dataroot_path) / config.mtp_path
    if not folder.is_dir():
        raise ValueError(
            f"no MPI files at {folder}; make them with utils/gen_mtp.py, or let them be rendered on the way from "
            "labels: --occ_kind=syntheocc, occ3d, ..."
        )
    return folder


def _check_mpi_files(config: "GenerateConfig", spec: "ConditionSpec", factor: int) -> None:
    """Raise ValueError when the MPI files suit neither the model nor the size of a view (`factor` pixels a cell)."""
    folder = mpi_folder(config)
    made = mpi_settings(folder)
    wanted = {
        "pixel_origin": spec.pixel_origin,
        "height": config.height // factor,
        "width": config.width // factor,
    }
    wrong = [name for name in wanted if made[name] != wanted[name]]
    if wrong:
        raise ValueError(
            f"the MPI files of {folder} have {', '.join(f'{name} {made[name]}' for name in wrong)}, the model and "
            f"views of {config.height}x{config.width} want {', '.join(str(wanted[name]) for name in wrong)}; make "
            f"them with utils/gen_mtp.py {' '.join(f'--{name}={wanted[name]}' for name in wrong)} (and another "
            "--mtp_path), or give --occ_kind=syntheocc, occ3d, ... to have them rendered on the way"
        )
