"""What a generation returns."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
from diffusers.utils import BaseOutput
from torch import Tensor

from syntheocc.occupancy.rendering.mpi import SemanticMPI


@dataclass
class SyntheOccPipelineOutput(BaseOutput):
    """Generated views of S samples (times `num_images_per_prompt`), and the condition they were made from.

    Attributes:
        images: pictures, `images[sample][view]` PIL; "pt" gives `[S, V, 3, H, W]` and "np" `[S, V, H, W, 3]`, both in
            0..1; "latent" gives `[S, V, 4, h, w]`, scaled as the UNet sees them. None for video.
        frames: video, `frames[sample][frame][view]` PIL, or the same arrays with a frame axis: `[S, F, V, ...]`. None
            for pictures.
        mpi: the rendered condition, labels `[S, V, D, h, w]`; for video a list of S with labels `[F, V, D, h, w]`. Not
            repeated for `num_images_per_prompt`.
    """

    images: list[list[PIL.Image.Image]] | np.ndarray | Tensor | None = None
    frames: list[list[list[PIL.Image.Image]]] | np.ndarray | Tensor | None = None
    mpi: SemanticMPI | list[SemanticMPI] | None = None
