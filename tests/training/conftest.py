"""A tiny SyntheOcc step and a batch for it."""

import pytest
import torch
from diffusers import DDPMScheduler

from syntheocc.models.presets import tiny_components
from syntheocc.training.batch import TrainingBatch
from syntheocc.training.dropout import ConditionDropout
from syntheocc.training.step import SyntheOccStep


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
