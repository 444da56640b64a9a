"""The context-relation prior (MonoScene, section 3.3): what stands how to what, learnt from labels.

Every voxel of the bottleneck is related to every "mega voxel", a group of 2 x 2 x 2 of them, in R ways (of the same
class, of another, both empty, one of each); each relation gathers the mega voxels' context for it.

Legend: B samples, C channels, R relations, M mega voxels, N voxels of the bottleneck (specs/occdepth.md 2.7).
"""

import torch
from torch import Tensor, nn

from syntheocc.occupancy.perception.occdepth.volume_blocks import ASPP3D, Blocks, process

__all__ = ["RelationPrior", "mega_shape"]


def mega_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many mega voxels there are along each axis; what does not fill one is left out."""
    return tuple(size // 2 for size in shape)


class RelationPrior(nn.Module):
    """Features of the bottleneck to features that know their surroundings, and the logits of the relations.

    Args:
        channels: C.
        shape: voxels of the bottleneck along the axes as the network sees them.
        relations: R.
    """

    def __init__(self, channels: int, shape: tuple[int, int, int], relations: int):
        super().__init__()
        self.aspp = ASPP3D(channels)
        # An odd axis is not padded: its last voxel belongs to no mega voxel.
        x, y, z = ((size + 1) % 2 for size in shape)
        self.context = nn.Conv3d(channels, 2 * channels, 3, stride=2, padding=(x, y, z))
        mega = torch.Size(mega_shape(shape)).numel()
        self.relations = nn.ModuleList(nn.Conv3d(channels, mega, 1) for _ in range(relations))
        self.merge = nn.Conv3d(channels * (1 + 2 * relations), channels, 1, bias=False)
        self.process = Blocks(*process(channels, (1,)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, x, y, z] to the same shape and logits [B, R, M, N]."""
        a = self.aspp(x)
        context = self.context(a).flatten(2)  # [B, 2C, M]
        logits = torch.stack([relation(a).flatten(2) for relation in self.relations], 1)  # [B, R, M, N]
        gathered = context[:, None] @ logits.sigmoid()  # [B, R, 2C, N]
        joined = torch.cat([x, gathered.flatten(1, 2).unflatten(2, x.shape[2:]).to(x.dtype)], 1)
        return self.process(self.merge(joined)), logits
