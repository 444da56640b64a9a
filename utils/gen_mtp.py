"""Occupancy labels -> 3D semantic MPI files, in the released formats.

    torchrun utils/gen_mtp.py                                   # one process, <dataroot>/samples_syntheocc_surocc/
    torchrun --nproc_per_node 8 utils/gen_mtp.py --occ_kind=surroundocc --occ_path=data/nuscenes_occ
    python utils/gen_mtp.py --info_path=infos.pkl --dataroot_path=data/nuscenes

Any number of processes, with or without a GPU; every sample is made exactly once. Interrupted or run again, it goes on
with what is missing. Labels that cannot be read are listed at the end, and the exit status is then 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from syntheocc.commands import exit_status  # noqa: E402
from syntheocc.commands.mpi import MPIConfig, run  # noqa: E402
from syntheocc.engine.flags import parse_flags  # noqa: E402

if __name__ == "__main__":
    sys.exit(exit_status(run, parse_flags(MPIConfig, description=__doc__)))
