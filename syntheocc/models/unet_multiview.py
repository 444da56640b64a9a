"""The multi-view UNet: a Stable Diffusion UNet whose transformer blocks also look at the neighbouring cameras."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (see attention.py)
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from torch import Tensor, nn

from syntheocc.models.attention import (
    NEW_LAYERS,
    NEW_LAYERS_VIDEO,
    DispatchAttnProcessor,
    MultiviewTransformerBlock,
    NeighborAttention,
)
from syntheocc.models.loading import (
    StrictLoadingMixin,
    config_for,
    copy_weights,
    initialised_by,
    place_like,
    takes_arguments_of,
)
from syntheocc.models.neighbors import NeighborLinks, frame_links, view_links


class MultiviewUNet2DConditionModel(StrictLoadingMixin, UNet2DConditionModel):
    """UNet2DConditionModel with cross-view attention in every transformer block (SyntheOcc, arXiv 2410.00337).

    The batch is (sample frame view), views fastest; which view looks at which is an argument of the call. Every
    argument of UNet2DConditionModel is taken too, and the config of the released weights loads as it is.

    Args:
        crossview_attn_type: "basic", the only kind there is.
        neighboring_attn_type: "add": one softmax per neighbour, the results summed.
        zero_module_type: "zero_linear": the layer that leads back into the stream starts at zero.
        trainable_state: recorded as the released config has it; see `multiview_parameters` for what to train.
        neighboring_view_pair: {view: [neighbour views]} of the rig the weights were trained on. The default table
            when a call brings no neighbours; None (the default) makes neighbours a required argument.
        img_size: (height, width) in pixels the weights were trained at; recorded.
        cross_frame_attention: add layers that attend to the same view at other moments (video); used when a call
            brings "frame_neighbors".

    Example:
        >>> stock = UNet2DConditionModel.from_pretrained(path, subfolder="unet")
        >>> unet = MultiviewUNet2DConditionModel.from_unet(stock)
        >>> ring = torch.tensor([[(i - 1) % 6, (i + 1) % 6] for i in range(6)])
        >>> unet(latents, t, text, cross_attention_kwargs={"neighbors": ring}).sample  # [S*6, 4, h, w]

    """

    _repeated_blocks = ["MultiviewTransformerBlock", "FusedMultiviewTransformerBlock"]
    _no_split_modules = [
        "MultiviewTransformerBlock" if name == "BasicTransformerBlock" else name
        for name in UNet2DConditionModel._no_split_modules
    ]
    _accepted_class_names = ("MultiviewUNet2DConditionModel", "UNet2DConditionModelMultiview")

    @takes_arguments_of(UNet2DConditionModel.__init__)
    def __init__(
        self,
        *args,
        crossview_attn_type: str = "basic",
        neighboring_attn_type: str = "add",
        zero_module_type: str = "zero_linear",
        trainable_state: str = "only_new",
        neighboring_view_pair: dict[str, list[int]] | None = None,
        img_size: tuple[int, int] | None = None,
        cross_frame_attention: bool = False,
        **kwargs,
    ):
        for name, value, known in (
            ("crossview_attn_type", crossview_attn_type, "basic"),
            ("neighboring_attn_type", neighboring_attn_type, "add"),
            ("zero_module_type", zero_module_type, "zero_linear"),
        ):
            if value != known:
                raise ValueError(f"{name} must be {known!r}, got {value!r}")
        super().__init__(*args, **kwargs)
        self.register_to_config(
            crossview_attn_type=crossview_attn_type,
            neighboring_attn_type=neighboring_attn_type,
            zero_module_type=zero_module_type,
            trainable_state=trainable_state,
            neighboring_view_pair=neighboring_view_pair,
            img_size=img_size,
            cross_frame_attention=cross_frame_attention,
        )
        blocks = [module for module in self.modules() if isinstance(module, BasicTransformerBlock)]
        if not blocks:
            raise ValueError(
                f"a UNet of {self.config.down_block_types} and {self.config.up_block_types} has no transformer block "
                "that could look at other views; use CrossAttn block types"
            )
        for block in blocks:
            MultiviewTransformerBlock.install(block, video=cross_frame_attention)
        self.set_default_attn_processor()

    @classmethod
    def from_unet(
        cls, unet: UNet2DConditionModel, generator: torch.Generator | None = None, **own: Any
    ) -> "MultiviewUNet2DConditionModel":
        """Add cross-view layers to a stock UNet; before training, the output is the stock UNet's bit for bit.

        Args:
            unet: any SD-family UNet (1.x, 2.x); a MultiviewUNet2DConditionModel too, e.g. to add the video layers.
            generator: initialises the new attention layers; default: torch's global generator.
            **own: this class's own arguments, e.g. `cross_frame_attention=True`.

        Returns:
            A new model with copies of the weights, on the device and in the dtype of `unet`.

        Raises:
            ValueError: `unet` lacks weights that only it could supply.

        """
        with initialised_by(generator):
            model = cls(**config_for(cls, unet.config, **own))
        place_like(model, unet)
        copy_weights(unet, model, new=lambda name: not _NEW.isdisjoint(name.split(".")))
        return model

    def multiview_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name, parameter) of every layer that a stock UNet lacks: what SyntheOcc trains in the UNet."""
        for name, parameter in self.named_parameters():
            if not _NEW.isdisjoint(name.split(".")):
                yield name, parameter

    def forward(
        self,
        sample: Tensor,  # [N, 4, h, w]
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,  # [N, T, C_text]
        *args,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **kwargs,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict noise (or velocity) for all views; UNet2DConditionModel's arguments, and two more in a dict.

        Args:
            sample: [N, 4, h, w] latents, N = S*F*V with the views fastest.
            timestep: one, or [N].
            encoder_hidden_states: [N, T, C_text].
            *args: further positional arguments of UNet2DConditionModel.
            cross_attention_kwargs: "neighbors" is int64 [V, K] or [S*F, V, K] with -1 padding, or what `link_views`
                made of it (once per generation instead of once per step); "frame_neighbors" likewise, int64 [F, K],
                with a model that has cross-frame attention.
            **kwargs: further arguments of UNet2DConditionModel.

        Raises:
            ValueError: no neighbours and none in the config, a table that does not fit the batch, or frame_neighbors
                given to a model without cross-frame attention.

        """
        attention_kwargs = dict(cross_attention_kwargs or {})
        links = self.link_views(
            sample.shape[0],
            attention_kwargs.get("neighbors"),
            attention_kwargs.get("frame_neighbors"),
            device=sample.device,
        )
        return super().forward(
            sample,
            timestep,
            encoder_hidden_states,
            *args,
            cross_attention_kwargs={**attention_kwargs, **links},
            **kwargs,
        )

    def link_views(
        self,
        batch: int,
        neighbors: Tensor | NeighborLinks | None = None,
        frame_neighbors: Tensor | NeighborLinks | None = None,
        device: torch.device | None = None,
    ) -> dict[str, NeighborLinks]:
        """Check neighbour tables and resolve them for a batch of N elements; pass the result on as it is.

        Tables that live on the CPU are checked, and one without padding costs nothing extra; see `view_links`.

        Args:
            batch: N = S*F*V.
            neighbors: int64 [V, K] or [S*F, V, K]; None takes the config's table.
            frame_neighbors: int64 [F, K] or None.
            device: where the links live; default: the model's.

        Returns:
            {"neighbors": ...}, and "frame_neighbors" where given: the content of cross_attention_kwargs.

        """
        device = self.device if device is None else device
        if frame_neighbors is not None and not self.config.cross_frame_attention:
            raise ValueError(
                "frame_neighbors were given, but this model has no cross-frame attention; make one with "
                "from_unet(unet, cross_frame_attention=True)"
            )
        if neighbors is None:
            neighbors = self._config_neighbors()
        links = {}
        if isinstance(frame_neighbors, NeighborLinks):
            links["frame_neighbors"] = frame_neighbors
        elif frame_neighbors is not None:
            if isinstance(neighbors, NeighborLinks):
                raise ValueError("link_views: give neighbors and frame_neighbors both as tables or both as links")
            links["frame_neighbors"] = frame_links(frame_neighbors, neighbors.shape[-2], batch, device)
        if not isinstance(neighbors, NeighborLinks):
            neighbors = view_links(neighbors, batch, device)
        return {"neighbors": neighbors, **links}

    def _config_neighbors(self) -> Tensor:
        pairs = self.config.neighboring_view_pair
        if pairs is None:
            raise ValueError(
                'which views are neighbours? Pass cross_attention_kwargs={"neighbors": LongTensor [V, K]} (-1: none; '
                "CameraRig.neighbors() makes it, a single camera passes an empty [1, 0])"
            )
        return torch.tensor([pairs[key] for key in sorted(pairs, key=int)])

    def set_default_attn_processor(self) -> None:
        """Let self- and text attention go through diffusers' dispatcher, as they do from the start."""
        self.set_attn_processor(DispatchAttnProcessor())

    def set_attention_backend(self, backend: str) -> None:
        """Set the back-end of self-, text and cross-view attention ("native", "flash", "_native_cudnn"...)."""
        super().set_attention_backend(backend)
        self._set_neighbor_backend(AttentionBackendName(backend.lower()))

    def reset_attention_backend(self) -> None:
        """Return to the default attention back-end everywhere."""
        super().reset_attention_backend()
        self._set_neighbor_backend(None)

    def _set_neighbor_backend(self, backend: AttentionBackendName | None) -> None:
        for module in self.modules():
            if isinstance(module, NeighborAttention):
                module.attention_backend = backend


_NEW = frozenset(NEW_LAYERS + NEW_LAYERS_VIDEO)
