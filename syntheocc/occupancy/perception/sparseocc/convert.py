"""Released SparseOcc weights (an mmdetection state dict) under our names.

The image network has mmdetection's public names. The head's layers are recognised by the shapes of their tensors and
by which module they sit in together, not by what they are called: every shape follows from the config, and the few
layers of one shape are told apart by order (stages and norms are numbered by use) or by one word ("pos" for the
queries' positions). Whatever is left over or missing is an error that names it.

Legend: D channels of a query, G groups, c = D / G, P points, T frames, O mixed points, L levels.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from syntheocc.occupancy.perception.backbone_weights import neck_name, read_state_dict, resnet_name
from syntheocc.occupancy.perception.sparseocc.config import CHILDREN, SparseOccConfig, StageConfig

Path_ = tuple[str, ...]


def read_released(path: str | Path, config: SparseOccConfig) -> dict[str, Tensor]:
    """The weights of a released ``.pth`` file under our names; see `convert_state_dict`."""
    return convert_state_dict(read_state_dict(path), config)


def convert_state_dict(state: Mapping[str, Tensor], config: SparseOccConfig) -> dict[str, Tensor]:
    """A released state dict under our names, all of it.

    Args:
        state: ``img_backbone.*``, ``img_neck.*`` and the head under any other prefix.
        config: the model that the weights are for.

    Raises:
        ValueError: a tensor has no place, or a layer of the head is not found.
    """
    converted: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "img_backbone":
            ours = resnet_name(rest)
        elif part == "img_neck":
            ours = neck_name(rest)
        else:
            head[name] = value
            continue
        if ours is None:
            raise ValueError(f"{name} is no part of a ResNet with a feature pyramid; is this a SparseOcc checkpoint?")
        converted[f"image_encoder.{'backbone' if part == 'img_backbone' else 'neck'}.{ours}"] = value
    return converted | {f"head.{name}": value for name, value in convert_head(head, config).items()}


def convert_head(state: Mapping[str, Tensor], config: SparseOccConfig) -> dict[str, Tensor]:
    """The head's tensors under our names (``voxel_decoder...``, ``mask_decoder...``).

    Args:
        state: the head's part of a released state dict, under any common prefix.
        config: the model that the weights are for.

    Raises:
        ValueError: a layer of the config is not found, or tensors are left over.
    """
    return _HeadConverter(state, config).convert()


class _HeadConverter:
    def __init__(self, state: Mapping[str, Tensor], config: SparseOccConfig):
        self.config = config
        self.modules: dict[Path_, dict[str, Tensor]] = {}
        for name, value in state.items():
            *path, leaf = name.split(".")
            self.modules.setdefault(tuple(path), {})[leaf] = value
        self.converted: dict[str, Tensor] = {}

    def convert(self) -> dict[str, Tensor]:
        config, dims = self.config, self.config.embed_dims
        points = config.mask_points
        layers = self._mixing_layers(points, config.mask_out_points)
        queries = self._of_shape((config.num_queries, dims))
        if len(queries) != 2 or not layers:
            raise ValueError(
                f"the state dict holds {len(queries)} tables of {config.num_queries} queries of {dims} channels and "
                f"{len(layers)} layers for {points * config.num_frames} points; expected 2 and at least 1"
            )
        # The first stage may have a layer of the same shape: the mask decoder's is the one beside the queries.
        layer = max(layers, key=lambda path: _shared(path, queries[0]))
        positions = [path for path in queries if "pos" in path[-1].lower()]
        if len(positions) != 1:
            raise ValueError(f"which of {_names(queries)} holds positions? Exactly one name must contain 'pos'")
        (features,) = [path for path in queries if path not in positions]
        self._take(features, "mask_decoder.query_features")
        self._take(positions[0], "mask_decoder.query_positions")
        self._layer(layer, "mask_decoder", points, config.mask_out_points, True, False, "offset")
        classes = config.taxonomy.num_classes
        self._take(self._closest((classes - 1, dims), layer), "mask_decoder.class_head")
        self._take(self._closest((dims, dims), layer), "mask_decoder.mask_head")
        for index, part in enumerate(config.stages):
            self._stage(index, part)
        if self.modules:
            raise ValueError(f"the state dict holds layers that this model lacks: {_names(list(self.modules))}")
        return self.converted

    def _stage(self, index: int, part: StageConfig) -> None:
        config, dims, name = self.config, self.config.embed_dims, f"voxel_decoder.stages.{index}"
        layers = self._mixing_layers(part.points, part.out_points)
        if not layers:
            raise ValueError(
                f"the state dict has no layer for stage {index} ({part.points} points in each of "
                f"{config.num_frames} frames, mixed to {part.out_points}); is this the right preset?"
            )
        layer = layers[0]
        self._position_encoder(layer, f"{name}.position_encoder")
        self._layer(layer, name, part.points, part.out_points, part.self_attention, True, "sampling_offset")
        self._take(self._first((CHILDREN * dims, dims)), f"{name}.split")
        classes = config.taxonomy.num_classes
        self._take(self._first((classes if config.version == "1.1" else classes - 1, dims)), f"{name}.class_head")
        if config.version == "1.0":
            self._take(self._first((1, dims)), f"{name}.occupancy_head")

    def _layer(
        self, layer: Path_, name: str, points: int, out_points: int, attention: bool, adaptive: bool, offset: str
    ) -> None:
        """One decoder layer: [attention], sampling, mixing, feed-forward, and the norms behind each."""
        config, dims, groups = self.config, self.config.embed_dims, self.config.num_groups
        norms = ["norm_mixing", "norm_feed_forward"]
        if attention:
            norms.insert(0, "norm_attention")
            self._attention(layer, f"{name}.self_attention", adaptive)
        self._take(self._first((groups * points * 3, dims), layer), f"{name}.sampling.{offset}")
        self._take(self._first((groups * points * config.num_levels, dims), layer), f"{name}.sampling.scale_weights")
        made, out = self._mixing_shapes(points, out_points)
        self._take(self._first(made, layer), f"{name}.mixing.parameter_generator")
        self._take(self._first(out, layer), f"{name}.mixing.out_proj")
        self._take(self._first((config.feedforward_dims, dims), layer), f"{name}.feed_forward.up")
        self._take(self._first((dims, config.feedforward_dims), layer), f"{name}.feed_forward.down")
        found = self._of_shape((dims,), layer)
        if len(found) != len(norms):
            raise ValueError(f"{'.'.join(layer)} has {len(found)} norms, {name} needs {len(norms)}: {_names(found)}")
        for path, norm in zip(found, norms, strict=True):
            self._take(path, f"{name}.{norm}")

    def _attention(self, layer: Path_, name: str, adaptive: bool) -> None:
        found = [path for path in self._within(layer) if "in_proj_weight" in self.modules[path]]
        if len(found) != 1:
            raise ValueError(f"{'.'.join(layer)} has {len(found)} attentions, {name} needs one")
        inputs = self.modules.pop(found[0])
        self._put(f"{name}.qkv", {"weight": inputs.pop("in_proj_weight"), "bias": inputs.pop("in_proj_bias")})
        self._take((*found[0], "out_proj"), f"{name}.out")
        if adaptive:
            self._take(self._first((self.config.num_heads, self.config.embed_dims), layer), f"{name}.tau")

    def _position_encoder(self, layer: Path_, name: str) -> None:
        # Linear, norm, ReLU, linear, norm, ReLU: numbered 0, 1, 3 and 4 in a sequence of layers.
        encoder = self._first((self.config.embed_dims, 3), layer)[:-1]
        for index in (0, 1, 3, 4):
            self._take((*encoder, str(index)), f"{name}.{index}")

    def _mixing_shapes(self, points: int, out_points: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        config = self.config
        channels = config.embed_dims // config.num_groups
        numbers = channels**2 + points * config.num_frames * out_points
        inner = config.num_groups * out_points * channels
        return (config.num_groups * numbers, config.embed_dims), (config.embed_dims, inner)

    def _mixing_layers(self, points: int, out_points: int) -> list[Path_]:
        """The layers that hold an adaptive mixing of this size."""
        made, _ = self._mixing_shapes(points, out_points)
        return [path[:-2] for path in self._of_shape(made)]

    def _within(self, prefix: Path_) -> Iterator[Path_]:
        """Modules below a prefix, numbers in numeric order."""
        return iter(sorted((p for p in self.modules if p[: len(prefix)] == prefix), key=_natural))

    def _of_shape(self, shape: tuple[int, ...], prefix: Path_ = ()) -> list[Path_]:
        def fits(tensors: Mapping[str, Tensor]) -> bool:
            return "weight" in tensors and tuple(tensors["weight"].shape) == shape

        return [path for path in self._within(prefix) if fits(self.modules[path])]

    def _first(self, shape: tuple[int, ...], prefix: Path_ = ()) -> Path_:
        found = self._of_shape(shape, prefix)
        if not found:
            raise ValueError(f"no layer of shape {list(shape)} is left below {'.'.join(prefix) or 'the head'}")
        return found[0]

    def _closest(self, shape: tuple[int, ...], place: Path_) -> Path_:
        """The layer of a shape that shares most of its path with `place`."""
        self._first(shape)
        return max(self._of_shape(shape), key=lambda path: _shared(path, place))

    def _take(self, path: Path_, name: str) -> None:
        if path not in self.modules:
            raise ValueError(f"the state dict has no {'.'.join(path)}, which would be {name}")
        self._put(name, self.modules.pop(path))

    def _put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.converted.update({f"{name}.{leaf}": value for leaf, value in tensors.items()})


def _natural(path: Path_) -> list[tuple[int, int | str]]:
    """Sorts "norm2" before "norm10"."""
    pieces = re.findall(r"\d+|\D+", ".".join(path))
    return [(0, int(piece)) if piece.isdigit() else (1, piece) for piece in pieces]


def _shared(a: Path_, b: Path_) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _names(paths: Sequence[Path_]) -> str:
    return ", ".join(".".join(path) for path in paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
