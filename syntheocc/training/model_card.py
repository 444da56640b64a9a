"""The README of a trained pipeline, and its way to the hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syntheocc.training.config import TrainConfig

__all__ = ["check_hub", "model_card", "push_folder"]

# What a pipeline folder holds. Checkpoints and logs stay at home, and so do the validation pictures: they show
# photographs of the data set, which are under its licence.
PIPELINE_FILES = [
    "README.md", "model_index.json", "pipeline.py", "vae/*", "text_encoder/*", "tokenizer/*", "scheduler/*", "unet/*",
    "controlnet/*",
]  # fmt: skip
# Settings that say what was trained, in the order of the table.
_SETTINGS = (
    "pretrained_model_name_or_path controlnet_model_name_or_path train_modules height width num_frames occ_kind "
    "encoder_kind pixel_origin samples_per_cell prediction_type use_cbgs use_captions prompt text_dropout mpi_dropout "
    "per_view_timestep foreground_weights depth_weights progressive_weights global_batch_size max_train_steps "
    "learning_rate lr_scheduler lr_warmup_steps mixed_precision use_ema seed"
).split()

_CARD = """\
---
library_name: diffusers
pipeline_tag: image-to-image
tags: [syntheocc, occupancy, controlnet, multi-view, autonomous-driving]
---

# {name}

Multi-camera street views from 3D semantic occupancy: a [SyntheOcc](https://arxiv.org/abs/2410.00337) pipeline, trained
for {steps} steps on {samples} samples.

```python
from syntheocc import SyntheOccPipeline

pipe = SyntheOccPipeline.from_pretrained("{where}")
views = pipe("{prompt}", occupancy=grid, cameras=rig).images[0]
```

or, for a whole data set, `python infer.py --model_path_infer={where} --dataroot_path=data/nuscenes`.

## Condition

{condition}

## Training

{settings}

## Limits

The layout must be given. The model knows the streets, the weather and the cameras of its training data, and inherits
licence and limits of that data and of its base model. Do not use its pictures to judge the safety of a vehicle.
"""


def model_card(
    config: TrainConfig, condition: Mapping[str, Any], samples: int, steps: int, name: str | None = None
) -> str:
    """The card of a trained pipeline.

    Args:
        config: the resolved settings.
        condition: what conditions the ControlNet reads (`syntheocc.models.controlnet_mpi.conditioning_of`).
        samples: size of the training set.
        steps: trained.
        name: of the repository; default: of the output folder.
    """
    name = name or hub_name(config)
    settings = {setting: getattr(config, setting) for setting in _SETTINGS}
    return _CARD.format(
        name=name.rpartition("/")[2],
        where=name,
        prompt=config.prompt.replace('"', "'"),
        steps=steps,
        samples=samples,
        condition=_table(condition),
        settings=_table({key: value for key, value in settings.items() if value is not None}),
    )


def hub_name(config: TrainConfig) -> str:
    """The repository that a job uploads to: --hub_model_id, or the name of its output folder."""
    return config.hub_model_id or Path(config.output_dir).resolve().name


def check_hub(config: TrainConfig) -> str:
    """Make the repository before training begins, so that what can fail fails early; returns its full name.

    Raises:
        ValueError: the hub cannot be reached, or does not know the user.
    """
    from huggingface_hub import create_repo

    name = hub_name(config)
    if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name):
        raise ValueError(f"{name} is no name of a hub repository; give owner/name as --hub_model_id")
    try:
        return create_repo(name, exist_ok=True, private=True).repo_id
    except Exception as error:  # the hub's client raises errors of several libraries
        raise ValueError(
            f"cannot make the hub repository {name}: {error}\nLog in (hf auth login), or leave --push_to_hub out"
        ) from error


def push_folder(folder: Path, repository: str) -> str:
    """Upload the pipeline of `folder`, without its checkpoints and logs; returns where it is."""
    from huggingface_hub import upload_folder

    done = upload_folder(
        repo_id=repository, folder_path=str(folder), allow_patterns=PIPELINE_FILES, commit_message="End of training"
    )
    return str(done)


def _table(values: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        # Paths tell the machine's folders, not what they hold.
        text = Path(value).name if isinstance(value, str) and value.startswith((".", "/", "~")) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {shown(value)} |" for name, value in values.items())])
