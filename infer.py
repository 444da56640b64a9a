"""Street views for every sample of a data set, from its occupancy.

    python infer.py --model_path_infer=ckp/syntheocc --dataroot_path=data/nuscenes --gen_train_or_val=val
    accelerate launch --multi_gpu --num_processes 8 infer.py ...        (or torchrun; bash infer.sh picks by itself)

Writes <save_img_path>/<CAM>/<original picture name> (in the original's size, to be read in place of the real ones),
strips/, labels/ and manifest.json. Run again, it makes only what is missing. A sample that cannot be read is listed at
the end, and the exit status is then 1.
"""

import sys

from syntheocc.commands import exit_status
from syntheocc.commands.generate import InferConfig, run
from syntheocc.engine.flags import parse_flags

if __name__ == "__main__":
    sys.exit(exit_status(run, parse_flags(InferConfig, description=__doc__)))
