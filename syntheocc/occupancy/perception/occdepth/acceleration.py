"""A trained OccDepth made ready to predict fast: half precision, batch norms folded away, compiled, recorded."""

import copy

import torch
from torch import Tensor, nn

from syntheocc.engine.graphs import RecordedCall, signature
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.image_encoder import ImageEncoder
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.volume_blocks import ASPP3D
from syntheocc.occupancy.perception.prediction import OccupancyPrediction

__all__ = ["RecordedOccDepth", "fold_norms", "prepare_for_inference"]

# Convolution -> the norm behind it, as modules of ours and of transformers call them.
_PAIRS = {
    **{f"conv{number}": f"bn{number}" for number in range(1, 6)},
    "convolution": "batchnorm",
    "expand_conv": "expand_bn",
    "depthwise_conv": "depthwise_norm",
    "project_conv": "project_bn",
}


def fold_norms(module: nn.Module) -> nn.Module:
    """Merge every batch norm behind a convolution into it, in place, for inference.

    Returns:
        The module.

    Raises:
        ValueError: it is in training mode, where the norms would use the batch; or a norm is left over.
    """
    if module.training:
        raise ValueError("batch norms can be folded after model.eval() only")
    for child in list(module.modules()):
        if isinstance(child, ASPP3D):
            for convs, norms in ((child.conv1, child.bn1), (child.conv2, child.bn2)):
                for i in range(len(convs)):
                    _fold(convs, str(i), norms, str(i))
        elif isinstance(child, nn.Sequential):
            names = list(child._modules)
            for before, after in zip(names, names[1:], strict=False):
                _fold(child, before, child, after)
        else:
            for before, after in _PAIRS.items():
                _fold(child, before, child, after)
    left = [name for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    if left:
        raise ValueError(f"no convolution was found before the batch norms {', '.join(left[:5])}")
    return module


def _fold(owner: nn.Module, before: str, norms: nn.Module, after: str) -> None:
    conv, norm = owner._modules.get(before), norms._modules.get(after)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return
    if isinstance(conv, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d):
        transposed = isinstance(conv, nn.ConvTranspose3d)
        owner._modules[before] = nn.utils.fuse_conv_bn_eval(conv, norm, transposed)
        norms._modules[after] = nn.Identity()


def prepare_for_inference(
    model: OccDepth, dtype: torch.dtype | None = torch.bfloat16, compile: str | None = None
) -> OccDepth:
    """A copy of a model for predicting only.

    Args:
        model: stays as it is.
        dtype: of weights and activations; coordinates, similarities and depth stay float32. None keeps the model's.
        compile: backend of torch.compile for the networks, "inductor" for speed; None leaves them as they are. The
            first prediction then takes minutes, and batches keep their shape.

    Returns:
        the copy, in evaluation mode, without gradients.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    # In the weights' own precision: a folded norm multiplies each of them.
    fold_norms(fast)
    if dtype is not None:
        for part in fast.children():
            part.to(dtype)  # the means of the pictures, which are the model's own, keep their precision
    fast.image_network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast.volume_net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if compile is not None:
        for module in fast.modules():
            if isinstance(module, ImageEncoder):
                module.compile(backend=compile, dynamic=False)
        fast.image_network.decoder.compile(backend=compile, dynamic=False)
        fast.volume_net.compile(backend=compile, dynamic=False)
    return fast


class RecordedOccDepth:
    """Predictions of a rig that does not move, on a CUDA device, as one recorded graph.

    Args:
        model: of `prepare_for_inference`.
        cameras: of one batch; later pictures are taken by the same.

    Raises:
        ValueError: a model that needs depth pictures (a virtual view), or is in training mode.

    Example:
        >>> fast = RecordedOccDepth(prepare_for_inference(model.cuda()), cameras)  # doctest: +SKIP
        >>> fast(images).semantics.shape  # doctest: +SKIP
        torch.Size([1, 256, 256, 32])
    """

    def __init__(self, model: OccDepth, cameras: StereoCameras):
        if model.training or model.config.virtual_view:
            raise ValueError("a recording is of model.eval(), and of pictures alone: not of a virtual view")
        self.model = model
        self.lookup = model.lookup(cameras)
        self._calls: dict[tuple, RecordedCall] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> OccupancyPrediction:
        """The grids of pictures [B, I, 3, H, W], uint8 or normalised floats."""
        key = signature([images])
        if key not in self._calls:
            self._calls[key] = RecordedCall(self._labels, [images], constant=False)
        return OccupancyPrediction(self.model.config.grid, self.model.config.taxonomy, self._calls[key]([images]))

    def _labels(self, images: Tensor) -> Tensor:
        return self.model(images, self.lookup).logits.argmax(1).to(torch.uint8)
