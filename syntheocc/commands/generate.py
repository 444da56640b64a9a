"""``syntheocc generate`` and ``infer.py``: six street views for every sample of a data set.

The result for a sample depends on the seed and the sample's token only, not on the number of processes or their order.
With ``--as_dataset OUT`` the result is a data root like the original (`commands.dataset`).
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from syntheocc.commands.edit_sample import check_edit
from syntheocc.commands.generate_sample import SampleMaker, mpi_folder
from syntheocc.commands.own_scene import check_own_scene, own_frames, own_grid
from syntheocc.commands.published import TrainingOnlyFlags, ignored_flags
from syntheocc.commands.samples import OccupancyKind, SampleConfig
from syntheocc.engine.files import read_json
from syntheocc.engine.flags import flag
from syntheocc.training.captions import Captions

if TYPE_CHECKING:
    import torch

    from syntheocc.engine.ranks import Ranks
    from syntheocc.occupancy import OccupancyGrid
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.pipelines import SyntheOccPipeline

# What a sample's pictures depend on; a folder holds samples of one such set only.
_SETTINGS = (
    "pretrained_model_name_or_path model_path_infer revision variant mixed_precision occ_kind occ_path mtp_path "
    "prompt use_captions caption_path negative_prompt seed height width num_inference_steps cfg_scale "
    "mpi_guidance_scale controlnet_conditioning_scale rig occupancy"
).split()


@dataclass(kw_only=True)
class GenerateConfig(SampleConfig):
    """Generate the views of a data set's samples; run it again to go on where it stopped."""

    save_img_path: Path = flag(
        Path("./ckp/train_syntheocc/samples"),
        "folder of the results",
        env=("$SAVE_IMG_DIR", "./ckp/$EXP_NAME/samples", "$OUTPUT_DIR/samples"),
    )
    model_path_infer: str = flag(
        "./ckp/train_syntheocc",
        "trained model: a pipeline folder, or a folder or hub id with controlnet/ and unet/",
        env=("$OUTPUT_DIR", "./ckp/$EXP_NAME"),
    )
    pretrained_model_name_or_path: str = flag(
        "./ckp/stable-diffusion-v2-1",
        "Stable Diffusion folder or hub id: VAE, text encoder, tokenizer and scheduler for a model_path_infer that "
        "holds only controlnet/ and unet/",
        env="$MODEL_DIR",
    )
    revision: str | None = flag(None, "revision of the hub repositories")
    variant: str | None = flag(None, "variant of the base's weight files, e.g. fp16")
    occ_kind: Literal["mpi", OccupancyKind] = flag(
        "mpi", "the condition: MPI files below <mtp_path>, or labels of this format rendered on the way"
    )
    prompt: str = flag("show a photorealistic street view image", "text for all views")
    use_captions: bool = flag(False, "use a sample's own caption where the data has one")
    caption_path: Path | None = flag(None, "JSON file of captions by sample token or picture name")
    negative_prompt: str | None = flag(None, "what to steer away from")
    cfg_scale: float = flag(7.5, "guidance by the text; 1 is none")
    mpi_guidance_scale: float = flag(1.0, "guidance by the occupancy; 1 costs nothing extra")
    controlnet_conditioning_scale: float = flag(1.0, "strength of the condition")
    num_inference_steps: int = flag(20, "denoising steps")
    seed: int = flag(0, "seed of the noise")
    width: int = flag(800, "columns of a generated view before it is resized to the original's size")
    height: int = flag(448, "rows of a generated view")
    mixed_precision: Literal["no", "fp16", "bf16"] = flag("fp16", "precision on a GPU; a CPU computes in float32")
    allow_tf32: bool = flag(False, "allow TF32 matrix products on a GPU")
    enable_xformers_memory_efficient_attention: bool = flag(False, "use xformers where it is installed")
    compile: bool = flag(False, "compile the networks: a minute or more at first, then faster steps")
    ctrl_channel: int | None = flag(None, "channels of the condition (257: 256 planes + nearest class), only checked")
    curr_gpu: int | None = flag(None, "index of the GPU to use; under a launcher each process has its own")
    real_row: bool = flag(True, "show the real pictures in the strips")
    rig: Path | None = flag(
        None, "your own cameras: a rig file (YAML or JSON, docs/rigs.md) or a KITTI-360 calibration folder"
    )
    occupancy: tuple[str, ...] = flag(
        (),
        "your own grids, one sample each, seen by --rig: .npz files (docs/rigs.md), or files of --occ_kind's format",
    )
    edit: Path | None = flag(
        None, "recipe of edits (JSON, docs/editing.md) that every sample's occupancy goes through first"
    )
    lidar_check: bool = flag(True, "refuse labels that do not hold what the sample's own lidar sweep hit")
    as_dataset: Path | None = flag(
        None,
        "write a data root like the original instead, whose key frames' pictures are the generated ones: tables, "
        "infos, labels and a manifest; the prompt is the sample's caption unless --prompt or --caption_path is given",
    )
    unchanged: Literal["link", "copy"] = flag(
        "link", "what --as_dataset makes of files that stay as they are: lidar, labels, maps"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.height % 8 or self.width % 8 or self.height < 8 or self.width < 8:
            raise ValueError(f"height and width must be positive multiples of 8, got {self.height}x{self.width}")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")
        for name in ("cfg_scale", "mpi_guidance_scale", "controlnet_conditioning_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        check_own_scene(self)
        check_edit(self)

    def read_frames(self) -> tuple[list["Frame"], dict[str, str]]:
        """All samples, and token -> reason of those that are damaged (see `SampleConfig.read_frames`)."""
        frames, unreadable = ([], {}) if self.occupancy else super().read_frames()
        return (frames if self.rig is None else own_frames(self, frames)), unreadable

    def read_grid(self, frame: "Frame", kind: OccupancyKind) -> "OccupancyGrid":
        """The occupancy of one sample (see `SampleConfig.read_grid`)."""
        return own_grid(self, frame) if self.occupancy else super().read_grid(frame, kind)

    def settings(self) -> dict[str, Any]:
        """What a sample's pictures depend on, as JSON values."""
        values = {name: getattr(self, name) for name in _SETTINGS}
        # Folders that were made before there were these flags are gone on with.
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        values = {name: value for name, value in values.items() if value or name not in ("rig", "occupancy")}
        if self.edit is not None:
            values["edit"] = read_json(self.edit)
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


@dataclass(kw_only=True)
class InferConfig(GenerateConfig, TrainingOnlyFlags):
    """Everything that a published inference command may pass."""


def run(config: GenerateConfig) -> int:
    """Generate all samples; returns the exit status (1: some failed)."""
    from syntheocc.commands.batch import check_settings, print_summary, run_samples
    from syntheocc.commands.dataset import NOTES, DatasetFolder, code_version, weights_digest
    from syntheocc.commands.dataset_job import check_edited_tables, dataset_settings, finish
    from syntheocc.commands.outputs import OutputFolder
    from syntheocc.engine.ranks import Ranks

    ranks = Ranks.from_environment()
    if ranks.is_main and ignored_flags(config):
        print(f"ignored, because only training uses them: {' '.join(ignored_flags(config))}")
    if config.as_dataset is not None:
        config = dataset_settings(config, ranks)
    frames, unreadable = config.read_frames()
    if config.rig is not None:
        config = dataclasses.replace(config, real_row=False)  # no photographs of these cameras
    if not config.occupancy:
        config.check_labels(config.occ_kind)
        if config.occ_kind == "mpi":
            mpi_folder(config)
    captions = Captions.from_file(config.prompt, config.use_captions, config.caption_path)
    outputs: OutputFolder = OutputFolder(config.save_img_path)
    settings = config.settings()
    settings_file = outputs.root / "settings.json"
    if config.as_dataset is not None:
        check_edited_tables(config, frames)
        outputs = DatasetFolder(config.as_dataset, config.dataroot_path, config.unchanged)
        settings_file = outputs.root / NOTES / "settings.json"
        version = code_version()["version"]
        settings |= {"weights_sha256": weights_digest(config.model_path_infer), "version": version}
    check_settings(settings_file, settings, "give another --save_img_path, or remove the folder")
    # with nothing left to make, no model is loaded
    unfinished = any(not outputs.is_done(frame) for frame in ranks.share(frames))
    maker = None
    if unfinished:
        maker = SampleMaker(config, load_pipeline(config, ranks), outputs, captions, settings.get("weights_sha256"))
    with ranks.group():
        tally = run_samples(
            frames, outputs.is_done, maker, ranks, "street views", (settings_file, settings), unreadable
        )
        if ranks.is_main:
            if isinstance(outputs, DatasetFolder):
                finish(config, outputs, frames, settings, tally)
            else:
                outputs.write_manifest(frames, settings, tally)
            print_summary(
                tally, "six views each" if max(len(f.cameras) for f in frames) == 6 else "the views", outputs.root
            )
    return tally.status


def load_pipeline(config: GenerateConfig, ranks: "Ranks") -> "SyntheOccPipeline":
    """The pipeline of a job, on its device and in its precision.

    Raises:
        ValueError: a folder without a model, a GPU that is not there, a condition of other channels than asked for.
    """
    import torch

    from syntheocc.commands import quiet_loading
    from syntheocc.pipelines import SyntheOccPipeline
    from syntheocc.pipelines.sources import condition_spec

    quiet_loading()
    device = _device(config, ranks)
    dtype = torch.float32
    if device.type == "cuda":
        dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
    elif ranks.is_main and (config.mixed_precision != "no" or config.curr_gpu is not None):
        print("no GPU: computing on the CPU, in float32")

    model = Path(config.model_path_infer)
    if (model / "model_index.json").is_file():
        pipe = SyntheOccPipeline.from_pretrained(model, dtype=dtype)
    elif model.is_dir() and not ((model / "controlnet").is_dir() and (model / "unet").is_dir()):
        raise ValueError(
            f"{model} holds neither a pipeline (model_index.json) nor controlnet/ and unet/; give the folder of a "
            "trained model as --model_path_infer"
        )
    elif not model.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", config.model_path_infer):
        raise ValueError(
            f"no trained model at {config.model_path_infer}: neither a folder nor a hub id (owner/name); give one as "
            "--model_path_infer (infer.sh without arguments shows the embedded street instead)"
        )
    else:
        pipe = SyntheOccPipeline.from_original(
            config.pretrained_model_name_or_path,
            config.model_path_infer,
            dtype=dtype,
            variant=config.variant,
            revision=config.revision,
        )
    channels = condition_spec(pipe.controlnet).planes.num_layers + 1
    if config.ctrl_channel not in (None, channels):
        raise ValueError(f"ctrl_channel is {config.ctrl_channel}, but {config.model_path_infer} takes {channels}")
    pipe.to(device)
    if config.enable_xformers_memory_efficient_attention:
        pipe.enable_xformers_memory_efficient_attention()
    if device.type == "cuda":
        pipe.enable_fast_path(compile=config.compile, cuda_graph=not config.compile)
    pipe.set_progress_bar_config(disable=True)  # the bar of the samples is enough
    return pipe


def _device(config: GenerateConfig, ranks: "Ranks") -> "torch.device":
    """The rank's own GPU; alone, the one asked for; the CPU where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if ranks.world > 1:
        if ranks.is_main and config.curr_gpu is not None:
            print("ignored, because every process has a GPU of its own: --curr_gpu")
        return torch.device("cuda", ranks.local_rank % count) if count else torch.device("cpu")
    if config.curr_gpu is not None and count and not 0 <= config.curr_gpu < count:
        raise ValueError(f"curr_gpu is {config.curr_gpu}, but this machine has {count} GPUs, counted from 0")
    return torch.device("cuda", config.curr_gpu or 0) if count else torch.device("cpu")
