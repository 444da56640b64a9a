"""The ControlNet that reads semantic multi-plane images; what a condition must look like lives in its config."""

from typing import Any, Literal, NamedTuple

import torch
from diffusers import ModelMixin  # noqa: F401  (see attention.py)
from diffusers.models.controlnets.controlnet import ControlNetModel, ControlNetOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from syntheocc.models.attention import DispatchAttnProcessor
from syntheocc.models.loading import (
    StrictLoadingMixin,
    config_for,
    copy_weights,
    initialised_by,
    place_like,
    takes_arguments_of,
)
from syntheocc.models.mpi_encoder import MPIEncoder
from syntheocc.occupancy.taxonomy import TAXONOMIES, taxonomy_named


class EncodedCondition(NamedTuple):
    """Features of an MPI, already encoded, on their way through ControlNetModel.forward."""

    features: Tensor  # [N, C, h, w]


class ConditionEncoder(MPIEncoder):
    """MPIEncoder that lets encoded features pass, so that they need not be encoded again at every step."""

    def forward(
        self,
        labels: Tensor | EncodedCondition,
        nearest: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Encode class ids as MPIEncoder does, or return the features of an EncodedCondition."""
        if isinstance(labels, EncodedCondition):
            return labels.features
        return super().forward(labels, nearest, dtype)


class MPIControlNetModel(StrictLoadingMixin, ControlNetModel):
    """ControlNetModel with an MPI encoder in place of the picture encoder (SyntheOcc, arXiv 2410.00337).

    Takes every argument of ControlNetModel. The defaults of its own are the conventions of the released weights, whose
    config does not name them; `from_unet` has the defaults for new models.

    Args:
        conditioning_channels: D+1, planes and nearest class.
        encoder_kind: "scalar" (as released) or "categorical"; see MPIEncoder.
        num_planes: number of rendered planes.
        near: depth of the first plane, metres.
        step: distance of the planes, metres.
        groups: None, or the number of groups (96) that the planes are merged into.
        pixel_origin: "corner" (as released) or "center": where in a latent pixel the MPI is sampled.
        samples_per_cell: rays per latent pixel.
        taxonomy: name of the class table; grids are mapped to it.
        num_classes: number of ids of that table, free included.
        free_class: its free id.

    """

    _repeated_blocks = ["BasicTransformerBlock", "FusedTransformerBlock"]
    _accepted_class_names = ("MPIControlNetModel", "ControlNetModel1x1")
    # `encode_condition` runs outside `forward`, where group off-loading would not bring the encoder's weights.
    _group_offload_block_modules = ["controlnet_cond_embedding"]

    @takes_arguments_of(ControlNetModel.__init__)
    def __init__(
        self,
        *args,
        conditioning_channels: int = 257,
        encoder_kind: Literal["scalar", "categorical"] = "scalar",
        num_planes: int = 256,
        near: float = 0.2,
        step: float = 0.2,
        groups: int | None = None,
        pixel_origin: str = "corner",
        samples_per_cell: int = 1,
        taxonomy: str = "syntheocc",
        num_classes: int = 17,
        free_class: int = 0,
        **kwargs,
    ):
        layers = num_planes if groups is None else groups
        if conditioning_channels != layers + 1:
            raise ValueError(
                f"conditioning_channels is {conditioning_channels}, but {layers} planes and the nearest class are "
                f"{layers + 1}; for the grouped variant give groups={conditioning_channels - 1}"
            )
        if pixel_origin not in ("corner", "center"):
            raise ValueError(f"pixel_origin must be 'corner' or 'center', got {pixel_origin!r}")
        table = TAXONOMIES.get(taxonomy)
        if table is not None and (table.num_classes, table.free) != (num_classes, free_class):
            raise ValueError(
                f"taxonomy {taxonomy!r} has {table.num_classes} classes and free id {table.free}; got num_classes="
                f"{num_classes}, free_class={free_class}"
            )
        super().__init__(*args, conditioning_channels=conditioning_channels, **kwargs)
        self.register_to_config(
            encoder_kind=encoder_kind,
            num_planes=num_planes,
            near=near,
            step=step,
            groups=groups,
            pixel_origin=pixel_origin,
            samples_per_cell=samples_per_cell,
            taxonomy=taxonomy,
            num_classes=num_classes,
            free_class=free_class,
        )
        self.controlnet_cond_embedding = ConditionEncoder(
            encoder_kind, layers, num_classes, free_class, self.config.block_out_channels[0]
        )
        self.set_default_attn_processor()

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        encoder_kind: Literal["scalar", "categorical"] = "categorical",
        num_planes: int = 256,
        near: float = 0.2,
        step: float = 0.2,
        groups: int | None = None,
        pixel_origin: str = "center",
        samples_per_cell: int = 1,
        taxonomy: str = "syntheocc",
        num_classes: int | None = None,
        free_class: int | None = None,
        generator: torch.Generator | None = None,
    ) -> "MPIControlNetModel":
        """Make a ControlNet from the encoder half of a UNet, stock or multi-view (its cross-view layers stay behind).

        Args:
            unet: any SD-family UNet.
            encoder_kind: see the class.
            num_planes: see the class.
            near: see the class.
            step: see the class.
            groups: see the class.
            pixel_origin: see the class.
            samples_per_cell: see the class.
            taxonomy: see the class.
            num_classes: only for a taxonomy that is not one of `syntheocc.occupancy.taxonomy.TAXONOMIES`.
            free_class: likewise.
            generator: initialises the encoder; default: torch's global generator.

        Returns:
            A new model on the device and in the dtype of `unet`. Its output is zero until it is trained.

        Raises:
            ValueError: an unknown taxonomy without num_classes and free_class, or a UNet that does not fit.

        """
        if num_classes is None or free_class is None:
            table = taxonomy_named(taxonomy)
            num_classes, free_class = table.num_classes, table.free
        own = {
            "conditioning_channels": (num_planes if groups is None else groups) + 1,
            "encoder_kind": encoder_kind,
            "num_planes": num_planes,
            "near": near,
            "step": step,
            "groups": groups,
            "pixel_origin": pixel_origin,
            "samples_per_cell": samples_per_cell,
            "taxonomy": taxonomy,
            "num_classes": num_classes,
            "free_class": free_class,
        }
        with initialised_by(generator):
            model = cls(**config_for(cls, unet.config, **own))
        place_like(model, unet)
        copy_weights(unet, model, new=lambda name: name.startswith("controlnet_"))
        return model

    @property
    def plane_spec(self):
        """The PlaneSpec that a condition must be rendered with."""
        from syntheocc.occupancy.rendering.mpi import PlaneSpec

        config = self.config
        return PlaneSpec(num_planes=config.num_planes, near=config.near, step=config.step, groups=config.groups)

    @apply_forward_hook
    def encode_condition(self, labels: Tensor, nearest: Tensor | None = None) -> Tensor:
        """Encode MPIs once for all steps; the encoding depends on neither timestep nor text.

        With model offloading the network is brought to the device first, as for `forward`.

        Args:
            labels: class ids [N, D, h, w] or [N, D+1, h, w] (nearest class last); see MPIEncoder.forward.
            nearest: class ids [N, h, w].

        Returns:
            [N, C, h, w]; pass it to `forward` as `cond_embedding`.

        """
        return self.controlnet_cond_embedding(labels, nearest, self.dtype)

    def null_condition(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """Return the encoding [1, C, height, width] of an all-free MPI, the null condition of guidance.

        Args:
            height: of the latents.
            width: of the latents.
            device: where it is encoded; default: where the weights are.

        """
        layers = self.controlnet_cond_embedding.num_planes + 1
        free = torch.full((1, layers, 1, 1), self.config.free_class, dtype=torch.uint8, device=device or self.device)
        return self.encode_condition(free).expand(-1, -1, height, width)

    def forward(
        self,
        sample: Tensor,  # [N, 4, h, w]
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,  # [N, T, C_text]
        controlnet_cond: Tensor | None = None,
        conditioning_scale: float = 1.0,
        *args,
        nearest: Tensor | None = None,
        cond_embedding: Tensor | None = None,
        **kwargs,
    ) -> ControlNetOutput | tuple[list[Tensor], Tensor]:
        """Compute the residuals for the UNet; ControlNetModel's arguments, the condition in one of two forms.

        Args:
            sample: [N, 4, h, w] latents.
            timestep: one, or [N].
            encoder_hidden_states: [N, T, C_text].
            controlnet_cond: class ids [N, D, h, w] or [N, D+1, h, w] (nearest class last), at latent resolution.
            conditioning_scale: strength of the condition.
            *args: further positional arguments of ControlNetModel.
            nearest: class ids [N, h, w] beside a [N, D, h, w] condition.
            cond_embedding: [N, C, h, w] (or broadcastable), what `encode_condition` returned.
            **kwargs: further arguments of ControlNetModel (guess_mode, return_dict, ...).

        Raises:
            ValueError: not exactly one of controlnet_cond and cond_embedding, or a condition of another size.

        """
        if (controlnet_cond is None) == (cond_embedding is None):
            raise ValueError("give either controlnet_cond (class ids) or cond_embedding (encode_condition's result)")
        if cond_embedding is None:
            cond_embedding = self.encode_condition(controlnet_cond, nearest)
        if cond_embedding.shape[-2:] != sample.shape[-2:]:
            raise ValueError(
                f"the condition is {tuple(cond_embedding.shape[-2:])}, the latents are {tuple(sample.shape[-2:])}: "
                "render the MPI at latent resolution, 1/8 of the image"
            )
        return super().forward(
            sample,
            timestep,
            encoder_hidden_states,
            EncodedCondition(cond_embedding),
            conditioning_scale,
            *args,
            **kwargs,
        )

    def set_default_attn_processor(self) -> None:
        """Let attention go through diffusers' dispatcher, as it does from the start."""
        self.set_attn_processor(DispatchAttnProcessor())


def conditioning_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a ControlNet's config that says how its condition is rendered (for manifests)."""
    keys = ("encoder_kind", "num_planes", "near", "step", "groups", "pixel_origin", "samples_per_cell", "taxonomy")
    return {key: config[key] for key in keys}
