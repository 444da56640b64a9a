#!/usr/bin/env bash
# Train syntheocc-nano from nothing on every visible GPU and export it: ~11.5 minutes on four H200.
#
#   bash examples/nano/run.sh                              -> outputs/nano/syntheocc-nano, sheets beside it
#   bash examples/nano/run.sh --seconds 900                any flag of examples/nano/train.py
#   NGPU=1 OUTPUT_DIR=/data/nano bash examples/nano/run.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../utils/setup_env.sh"
ensure_env

NGPU="${NGPU:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$NGPU" \
    "$SYNTHEOCC_ROOT/examples/nano/train.py" --output "${OUTPUT_DIR:-$SYNTHEOCC_ROOT/outputs/nano}" --keep_data --unpacked "$@"
