"""OccDepth as an ONNX file: its weights, its relation prior, and where a rig's voxels lie in its pictures.

Inputs of the file (batch 1, W, H and V of the config):

* ``images`` uint8 [1, I, 3, H, W]: RGB, left then right, of the config's `image_size`; normalised in the file;
* ``depth`` float32 [1, 1, H, W], of a model with a virtual second view: metres along the optical axis, 0 none;
* without a fixed rig also ``velo2img`` float64 [1, V, 4, 4] from the grid's frame (metres) to (u*z, v*z, z, 1) of
  these images, ``intrinsics`` float64 [1, V, 3, 3] of them (pixels), and ``origin`` float64 [1, 3], the grid's lower
  corner (metres).

Outputs: ``labels`` uint8 [1, X, Y, Z], ``logits`` float32 [1, K, X, Y, Z], and of what the model has
``occupancy_logits`` [1, 2, X, Y, Z], ``relation_logits`` [1, R, M, N] and ``depth_logits`` [1, I, D, h, w].

The graph needs opset 20: sampling a volume (`GridSample` in 5-D) is not in older ones. KITTI's calibration changes
with the recording day, so a file with a fixed rig is of some sequences only; NYUv2's grids lie elsewhere in every
frame and take their cameras as inputs.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from syntheocc.engine.files import atomic_path
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.model import Lookup, OccDepth

__all__ = ["OPSET", "check_onnx", "export_onnx", "onnx_inputs"]

OPSET = 20
_CAMERAS = ("velo2img", "intrinsics", "origin")


def export_onnx(model: OccDepth, path: str | Path, rig: StereoCameras | None = None) -> Path:
    """Write a model as one ONNX file, by rename.

    Args:
        model: in evaluation mode, on the CPU, float32.
        path: ends in .onnx.
        rig: cameras that never move (batch 1), kept in the file; None: they are inputs.

    Returns:
        the path.

    Raises:
        ValueError: another suffix, a model in training mode or elsewhere, or packages that are missing.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: ONNX files end in .onnx")
    if model.training:
        raise ValueError("export needs model.eval(): batch norms of a training model use the batch")
    if next(model.parameters()).device.type != "cpu":
        raise ValueError("export needs the model on the CPU: model.cpu()")
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ONNX export needs the extra [onnx] ({error}): pip install 'syntheocc[onnx]'") from error
    wrapped = _Exported(model, rig).eval()
    example = onnx_inputs(model, rig)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations; what fails is an error
        program = torch.onnx.export(
            wrapped,
            tuple(example.values()),
            input_names=list(example),
            output_names=wrapped.names(),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            external_data=False,
        )
    assert program is not None
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)
        onnx.checker.check_model(str(temporary))
    return path


def onnx_inputs(model: OccDepth, rig: StereoCameras | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of the exported file, by name, in their order; see the table above.

    Args:
        model: what is exported.
        rig: what it was exported with. Without, the cameras are a made-up pair that looks over the grid.
        seed: of the pictures.
    """
    config, generator = model.config, torch.Generator().manual_seed(seed)
    height, width = config.image_size
    pictures = 1 if config.virtual_view else config.num_views
    shape = (1, pictures, 3, height, width)
    inputs = {"images": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}
    if config.virtual_view:
        inputs["depth"] = torch.rand(1, 1, height, width, generator=generator) * 4 + 1
    if rig is None:
        cameras = _made_up(model)
        inputs |= {name: getattr(cameras, name) for name in _CAMERAS}
    return inputs


def check_onnx(model: OccDepth, path: str | Path, rig: StereoCameras | None = None, seed: int = 1) -> dict[str, float]:
    """The largest differences between a file in onnxruntime and the model in PyTorch: output -> absolute difference.

    "labels" is the share of voxels whose class differs. onnxruntime's default provider, the CPU, is taken.
    """
    import onnxruntime

    inputs = onnx_inputs(model, rig, seed)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    wrapped = _Exported(model, rig).eval()
    with torch.no_grad():
        wanted = wrapped(*inputs.values())
    differences: dict[str, float] = {}
    for name, theirs, ours in zip(wrapped.names(), found, wanted, strict=True):
        if name == "labels":
            differences[name] = float((np.asarray(theirs) != ours.numpy()).mean())
        else:
            differences[name] = float(np.abs(np.asarray(theirs) - ours.numpy()).max())
    return differences


class _Exported(nn.Module):
    """The model with plain tensors in and out; a rig's lookup is kept as buffers."""

    def __init__(self, model: OccDepth, rig: StereoCameras | None):
        super().__init__()
        self.model = model
        self.fixed = rig is not None
        if rig is not None:
            if len(rig.velo2img) != 1:
                raise ValueError(f"a file is exported for one rig, got {len(rig.velo2img)}")
            flat = _flattened(model.lookup(rig))
            self.kept = list(flat)
            for name, value in flat.items():
                self.register_buffer(f"rig_{name}", value)

    def names(self) -> list[str]:
        """The outputs' names."""
        config = self.model.config
        optional = {
            "occupancy_logits": config.cascade,
            "relation_logits": config.relation_prior,
            "depth_logits": config.lift == "flosp_depth",
        }
        return ["labels", "logits", *(name for name, there in optional.items() if there)]

    def forward(self, images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        rest = list(others)
        depth = rest.pop(0) if self.model.config.virtual_view else None
        if self.fixed:
            cameras: Any = _unflattened({name: getattr(self, f"rig_{name}") for name in self.kept})
        else:
            cameras = StereoCameras(*rest)
        output = self.model(images, cameras, depth)
        labels = output.logits.argmax(1).to(torch.uint8)
        return labels, *(getattr(output, name) for name in self.names()[1:])


def _flattened(lookup: Lookup) -> dict[str, Tensor]:
    values = {
        "pixels": lookup.pixels.pixels, "inside": lookup.pixels.inside, "centers": lookup.projection.pixels,
        "depths": lookup.projection.depth, "half_extent": lookup.half_extent, "intrinsics": lookup.intrinsics,
    }  # fmt: skip
    return values | ({} if lookup.shift is None else {"shift": lookup.shift})


def _unflattened(values: dict[str, Tensor]) -> Lookup:
    from syntheocc.occupancy.perception.occdepth.geometry import Projection
    from syntheocc.occupancy.perception.occdepth.lifting import PixelLookup

    return Lookup(
        PixelLookup(values["pixels"], values["inside"]),
        Projection(values["centers"], values["depths"]),
        values["half_extent"],
        values["intrinsics"],
        values.get("shift"),
    )


def _made_up(model: OccDepth) -> StereoCameras:
    """A level pair half a metre apart at the grid's near end that sees about all of it.

    Its axis is a little beside the middle: with all of it symmetrical, voxels would lie right between two pixels, and
    a rounding error would decide which one a network that reads the nearest takes.
    """
    config = model.config
    height, width = config.image_size
    intrinsics = torch.tensor(
        [[0.6 * width, 0, width / 2 - 0.287], [0, 0.6 * width, height / 2 - 0.713], [0, 0, 1]], dtype=torch.float64
    )
    lower, upper = (torch.tensor(corner, dtype=torch.float64) for corner in (config.grid.lower, config.grid.upper))
    if config.dataset == "tartanair":  # its grid has a camera's axes
        axes, center = (
            torch.eye(3, dtype=torch.float64),
            torch.stack([(lower + upper)[0] / 2, (lower + upper)[1] / 2, lower[2]]),
        )
    else:
        axes = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
        center = torch.stack([lower[0], (lower + upper)[1] / 2, (lower + upper)[2] / 2])
    matrices = []
    for view in range(config.num_views):
        world2cam = torch.eye(4, dtype=torch.float64)
        world2cam[:3, :3] = axes
        world2cam[:3, 3] = -axes @ center - torch.tensor([0.5 * view, 0, 0], dtype=torch.float64)
        projection = torch.eye(4, dtype=torch.float64)
        projection[:3, :3] = intrinsics
        matrices.append(projection @ world2cam)
    return StereoCameras(
        torch.stack(matrices)[None], intrinsics.expand(1, config.num_views, 3, 3).clone(), lower[None]
    )
