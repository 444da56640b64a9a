"""The sparse voxel decoder: from a coarse grid to the few full-resolution voxels that matter (specs/sparseocc.md 2.6).

Legend: B samples, Q voxels of a stage, K kept voxels, D channels, C classes (free included).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syntheocc.engine.dropout import Seeds, fold
from syntheocc.occupancy.perception.sparseocc.blocks import AdaptiveMixing, FeedForward, PositionEncoder, SelfAttention
from syntheocc.occupancy.perception.sparseocc.config import CHILDREN, SparseOccConfig
from syntheocc.occupancy.perception.sparseocc.geometry import child_corners, inside, level_corners, voxel_points
from syntheocc.occupancy.perception.sparseocc.sampling import ImageFeatures, VoxelSampling


@dataclass
class StageOutput:
    """The voxels that a stage kept."""

    corners: Tensor
    """int64 [B, K, 3]: full-resolution index of each voxel's lowest corner."""
    cell: int
    """Edge of the voxels in full-resolution voxels: 4, 2, 1."""
    features: Tensor
    """[B, K, D]."""
    class_logits: Tensor
    """[B, K, C] over all classes of the taxonomy; [B, K, C - 1] over the occupied ones in version 1.0."""
    occupancy_logits: Tensor | None
    """[B, K], version 1.0 only."""


class VoxelDecoderStage(nn.Module):
    """Looks at the images around each voxel, splits it into eight and scores the children."""

    def __init__(self, config: SparseOccConfig, stage: int):
        super().__init__()
        part, dims = config.stages[stage], config.embed_dims
        self.config = config
        self.cell = config.cell(stage)
        self.position_encoder = PositionEncoder(dims)
        self.self_attention: SelfAttention | None = None
        if part.self_attention:
            self.self_attention = SelfAttention(dims, config.num_heads, config.dropout, scale_adaptive=True)
            self.norm_attention = nn.LayerNorm(dims)
        self.sampling = VoxelSampling(dims, config.num_groups, part.points, config.num_levels)
        self.mixing = AdaptiveMixing(dims, part.points * config.num_frames, part.out_points, config.num_groups)
        self.norm_mixing = nn.LayerNorm(dims)
        self.feed_forward = FeedForward(dims, config.feedforward_dims, config.dropout)
        self.norm_feed_forward = nn.LayerNorm(dims)
        self.split = nn.Linear(dims, CHILDREN * dims)
        classes = config.taxonomy.num_classes
        self.class_head = nn.Linear(dims, classes if config.version == "1.1" else classes - 1)
        self.occupancy_head = nn.Linear(dims, 1) if config.version == "1.0" else None

    def forward(
        self,
        features: Tensor,  # [B, Q, D]
        corners: Tensor,  # [B, Q, 3]
        images: ImageFeatures,
        seeds: Seeds = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Children's features [B, Q*8, D], class logits [B, Q*8, C] and, in version 1.0, occupancy logits.

        `seeds` are the dropout's, one a sample (None: torch's own state).
        """
        spec = self.config.grid
        queries = features + self.position_encoder.of_corners(corners, spec)
        if self.self_attention is not None:
            centers = voxel_points(corners, spec, 0.5 * self.cell)
            attended = self.self_attention(queries, centers_xy=centers[..., :2], seeds=fold(seeds, 0))
            queries = self.norm_attention(attended)
        sampled = self.sampling(queries, corners, self.cell, spec, images)
        queries = self.norm_mixing(self.mixing(sampled, queries))
        queries = self.norm_feed_forward(self.feed_forward(queries, fold(seeds, 1)))
        # Channels j*D..(j+1)*D are child j.
        children = self.split(queries).relu().unflatten(-1, (CHILDREN, -1)).flatten(1, 2)
        occupancy = None if self.occupancy_head is None else self.occupancy_head(children).squeeze(-1)
        return children, self.class_head(children), occupancy


class SparseVoxelDecoder(nn.Module):
    """All stages, none sharing weights.

    Positions and features are detached between stages: each stage learns from its own losses only, and from the mask
    losses the last one.
    """

    def __init__(self, config: SparseOccConfig):
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(VoxelDecoderStage(config, i) for i in range(len(config.stages)))
        self.gradient_checkpointing = False

    def forward(self, images: ImageFeatures, seeds: Seeds = None) -> list[StageOutput]:
        """One output a stage, coarse to fine; `seeds` are the dropout's, one a sample (None: torch's own state)."""
        config = self.config
        batch, device = images.ego2img.shape[0], images.ego2img.device
        corners = level_corners(config.coarse_shape(), config.cell(0), device).expand(batch, -1, -1)
        features = torch.zeros(*corners.shape[:2], config.embed_dims, device=device, dtype=images.maps[0].dtype)
        outputs = []
        for index, stage in enumerate(self.stages):
            given = (features, corners, images, fold(seeds, index))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                children, classes, occupancy = checkpoint(stage, *given, use_reentrant=False)
            else:
                children, classes, occupancy = stage(*given)
            below = child_corners(corners, config.cell(index))
            kept = self._keep(index, below, classes, occupancy)
            outputs.append(
                StageOutput(
                    corners=_rows(below, kept),
                    cell=config.cell(index) // 2,
                    features=_rows(children, kept),
                    class_logits=_rows(classes, kept),
                    occupancy_logits=None if occupancy is None else occupancy.gather(1, kept),
                )
            )
            corners, features = outputs[-1].corners, outputs[-1].features.detach()
        return outputs

    def _keep(self, index: int, corners: Tensor, classes: Tensor, occupancy: Tensor | None) -> Tensor:
        """Rows of the children that are most likely occupied: int64 [B, K]."""
        part, shape = self.config.stages[index], self.config.grid.shape
        if occupancy is None:
            scores = 1 - classes.detach().float().softmax(-1)[..., self.config.taxonomy.free]
        else:
            scores = occupancy.detach().float().sigmoid()
        if any(n % self.config.cell(0) for n in shape):
            # Children beyond the grid's border come last; those that are kept for want of others are never painted.
            scores = scores.masked_fill(~inside(corners, shape), -1)
        keep = part.keep_train if self.training else part.keep_test
        return scores.topk(min(keep, scores.shape[1]), dim=1).indices


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """[B, N, D] and [B, K] to [B, K, D]."""
    return table.gather(1, rows[..., None].expand(-1, -1, table.shape[-1]))
