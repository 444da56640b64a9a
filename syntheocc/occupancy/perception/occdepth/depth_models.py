"""Depth of single pictures by a network of the user's: any metric depth model that transformers knows, in a folder.

What it predicts may teach OccDepth's depth distribution in place of stereo matching. Models of *relative* depth
(MiDaS, DPT, the plain Depth Anything) have no metres and are refused.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["DepthModel"]

# Kinds that always predict metres; others say it in `depth_estimation_type`.
_METRIC = ("depth_pro", "glpn", "zoedepth")


class DepthModel:
    """A depth network and its picture processor.

    Args:
        folder: with config.json, weights and preprocessor_config.json, as `save_pretrained` leaves them.
        device: where it runs.

    Raises:
        ValueError: no such folder, files that transformers cannot load, or a model of relative depth.
    """

    def __init__(self, folder: str | os.PathLike, device: torch.device | str = "cpu"):
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        if not Path(folder).is_dir():
            raise ValueError(f"{folder}: no such folder; give one that holds a depth model of transformers")
        with _named(folder):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type not in _METRIC and getattr(config, "depth_estimation_type", None) != "metric":
            raise ValueError(
                f"{folder}: a {config.model_type} of relative depth, which has no metres; take a metric one "
                f"({', '.join(_METRIC)}, or Depth Anything for metric depth)"
            )
        with _named(folder):
            self.processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.network: Any = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True)
        self.network.to(device).eval()

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Depth of a picture.

        Args:
            image: RGB uint8 [H, W, 3].

        Returns:
            float32 [H, W] metres along the optical axis; 0 where the network's answer is no positive number.
        """
        inputs = self.processor(images=image, return_tensors="pt").to(self.network.device)
        output = self.network(**inputs)
        depth = self.processor.post_process_depth_estimation(output, target_sizes=[image.shape[:2]])
        metres = depth[0]["predicted_depth"].float().cpu().numpy()
        return np.where(np.isfinite(metres) & (metres > 0), metres, 0.0).astype(np.float32)


@contextmanager
def _named(folder: str | os.PathLike) -> Iterator[None]:
    """Errors of loading become a ValueError with the folder's name."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{folder}: cannot be loaded as a depth model ({error})") from error
