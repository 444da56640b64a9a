"""Depth pictures for OccDepth: stereo matching, or a depth network given by its folder.

    python utils/gen_depth.py --dataroot=data/semantic_kitti                    # all frames with voxels, on all cores
    python utils/gen_depth.py --dataroot=kitti --sequences=08 --every_frame --output_root=depth
    python utils/gen_depth.py --dataroot=kitti --method=model --model=checkpoints/zoedepth

Writes <output_root>/sequences/XX/depth/NNNNNN.png (uint16, metres * 256, 0 none). Interrupted or run again, it goes on
with what is missing. Pictures that cannot be made are listed at the end, and the exit status is then 1. Matching
needs OpenCV: pip install 'syntheocc[stereo]'.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from syntheocc.commands import exit_status  # noqa: E402
from syntheocc.commands.depth import DepthConfig, run  # noqa: E402
from syntheocc.engine.flags import parse_flags  # noqa: E402

if __name__ == "__main__":
    sys.exit(exit_status(run, parse_flags(DepthConfig, description=__doc__)))
