"""Ways cut at every face that they cross; the middle of each piece tells its voxel."""

import torch
from torch import Tensor

_CHUNK = 4096


def count_passes_reference(begin: Tensor, end: Tensor, stops: Tensor, through: Tensor, lowest: Tensor) -> None:
    """See `syntheocc.occupancy.ops.ray_passes.count_passes`."""
    shape = torch.tensor(through.shape)
    for first in range(0, len(begin), _CHUNK):
        b, way = begin[first : first + _CHUNK], end[first : first + _CHUNK] - begin[first : first + _CHUNK]
        steps = int(way.abs().amax().ceil()) + 2
        cuts = [torch.zeros(len(b), 1, dtype=b.dtype), torch.ones(len(b), 1, dtype=b.dtype)]
        for axis in range(3):
            low = torch.minimum(b[:, axis], b[:, axis] + way[:, axis]).floor()
            faces = low[:, None] + torch.arange(1, steps, dtype=b.dtype)
            share = (faces - b[:, axis, None]) / way[:, axis, None]
            cuts.append(torch.where((share > 0) & (share < 1), share, 1.0))
        shares = torch.cat(cuts, 1).sort(1).values
        near, far = shares[:, :-1], shares[:, 1:]
        # Faces that are not crossed were put at the end, where they leave pieces without length.
        piece = far > near
        last = far >= 1
        index = (b[:, None] + ((near + far) / 2)[..., None] * way[:, None]).floor().long()
        piece &= ((index >= 0) & (index < shape)).all(-1)
        height = b[:, None, 2] + torch.minimum(near * way[:, None, 2], far * way[:, None, 2])
        columns = index[piece][:, 0] * shape[1] + index[piece][:, 1]
        lowest.view(-1).scatter_reduce_(0, columns, height[piece], "amin")
        passed = piece & ~(last & stops[first : first + _CHUNK, None])
        x, y, z = index[passed].unbind(1)
        through.view(-1).index_add_(0, (x * shape[1] + y) * shape[2] + z, torch.ones(len(x), dtype=through.dtype))
