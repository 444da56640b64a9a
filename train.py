"""Train SyntheOcc on the key frames of a data set.

    python train.py --pretrained_model_name_or_path=ckp/stable-diffusion-v2-1 --dataroot_path=data/nuscenes
    accelerate launch --multi_gpu --num_processes 8 train.py ...        (or torchrun; bash train.sh picks by itself)

MPIs are rendered from occupancy labels on the training device; --mtp_path reads them from files instead. The trained
pipeline is written to --output_dir, where infer.py looks for it. Stopped (Ctrl-C, SIGTERM) it saves a checkpoint, and
goes on from there with --resume_from_checkpoint=latest. docs/training.md has recipes and the table of flags.
"""

import sys

from syntheocc.commands import exit_status
from syntheocc.engine.flags import parse_flags
from syntheocc.training.config import TrainConfig


def main(config: TrainConfig) -> int:
    """Train; what is heavy is imported when the flags are known to be good."""
    from syntheocc.training.train import run

    return run(config)


if __name__ == "__main__":
    sys.exit(exit_status(main, parse_flags(TrainConfig, description=__doc__)))
