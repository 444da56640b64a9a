"""The mask transformer: learned queries, each a class and a mask over the kept voxels (specs/sparseocc.md 2.7).

Legend: B samples, Q queries, K voxels, D channels, C occupied classes.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from syntheocc.engine.dropout import Generators, fold, seeds_of
from syntheocc.occupancy.perception.sparseocc.blocks import AdaptiveMixing, FeedForward, SelfAttention
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig
from syntheocc.occupancy.perception.sparseocc.sampling import ImageFeatures, MaskGuidedSampling
from syntheocc.occupancy.perception.sparseocc.voxel_decoder import StageOutput

# Share of positives that a new classifier expects; without it the focal loss starts at several hundreds.
_PRIOR = 0.01


@dataclass
class MaskPrediction:
    """What the queries say after one pass."""

    class_logits: Tensor
    """[B, Q, C], independent sigmoids over the occupied classes."""
    mask_logits: Tensor
    """[B, Q, K], over the voxels that the voxel decoder kept."""


class MaskDecoder(nn.Module):
    """One layer, applied `mask_iterations` times; the prediction before it and after each pass are supervised."""

    def __init__(self, config: SparseOccConfig):
        super().__init__()
        dims = config.embed_dims
        self.config = config
        self.query_features = nn.Embedding(config.num_queries, dims)
        self.query_positions = nn.Embedding(config.num_queries, dims)
        self.class_head = nn.Linear(dims, config.taxonomy.num_classes - 1)
        self.mask_head = nn.Linear(dims, dims)
        self.self_attention = SelfAttention(dims, config.num_heads)
        self.norm_attention = nn.LayerNorm(dims)
        self.sampling = MaskGuidedSampling(
            dims, config.num_groups, config.mask_points, config.num_levels, legacy=config.legacy
        )
        points = config.mask_points * config.num_frames
        self.mixing = AdaptiveMixing(dims, points, config.mask_out_points, config.num_groups)
        self.norm_mixing = nn.LayerNorm(dims)
        self.feed_forward = FeedForward(dims, config.feedforward_dims, config.dropout)
        self.norm_feed_forward = nn.LayerNorm(dims)
        nn.init.constant_(self.class_head.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(
        self, voxels: StageOutput, images: ImageFeatures, generator: Generators = None
    ) -> list[MaskPrediction]:
        """One prediction from the raw queries and one after each iteration; the last is the answer.

        Args:
            voxels: what the last stage of the voxel decoder kept.
            images: the feature maps.
            generator: draws the sampled voxels while training, one for the batch or one a sample; the dropout's
                seeds are theirs if they are one a sample. Evaluation draws nothing.
        """
        batch = voxels.features.shape[0]
        queries = self.query_features.weight.expand(batch, -1, -1)
        positions = self.query_positions.weight.expand(batch, -1, -1)
        predictions = [self._predict(queries, voxels)]
        seeds = seeds_of(generator)
        for iteration in range(self.config.mask_iterations):
            active = predictions[-1].mask_logits.detach() > 0
            queries = self.norm_attention(self.self_attention(queries, positions))
            sampled = self.sampling(queries, active, voxels.corners, self.config.grid, images, generator)
            queries = self.norm_mixing(self.mixing(sampled, queries))
            # Numbers that no stage of the voxel decoder has.
            queries = self.norm_feed_forward(self.feed_forward(queries, fold(seeds, 100 + iteration)))
            predictions.append(self._predict(queries, voxels))
        return predictions

    def _predict(self, queries: Tensor, voxels: StageOutput) -> MaskPrediction:
        return MaskPrediction(
            class_logits=self.class_head(queries),
            mask_logits=self.mask_head(queries) @ voxels.features.transpose(1, 2),
        )
