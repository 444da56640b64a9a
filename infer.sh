#!/usr/bin/env bash
# Street images from occupancy, in one command. Sets up what is missing first (see utils/setup_env.sh).
#
#   bash infer.sh                               the embedded street, no data needed -> outputs/demo (CPU: under a minute)
#   bash infer.sh --dataroot_path=data/nuscenes --model_path_infer=ckp/syntheocc --gen_train_or_val=val ...
#   EXP_NAME=mine TRAIN_OR_VAL=val bash infer.sh                       the same through the environment
#
# Flags: those of infer.py (bash infer.sh --help). Environment: EXP_NAME, MODEL_DIR, OUTPUT_DIR, SAVE_IMG_DIR, DATA_USED,
# TRAIN_OR_VAL, HF_HUB_OFFLINE; a flag wins over a variable. All visible GPUs are used (NGPU=1 for one).
# What is already written is not made again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/utils/setup_env.sh"
ensure_env

settings="${EXP_NAME:-}${MODEL_DIR:-}${OUTPUT_DIR:-}${SAVE_IMG_DIR:-}${DATA_USED:-}${TRAIN_OR_VAL:-}"
if [ "$#" -eq 0 ] && [ -z "$settings" ]; then
    exec "$PYTHON" -m syntheocc.commands demo
fi

export WANDB_DISABLED="${WANDB_DISABLED:-True}"
NGPU="${NGPU:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}"
if [ "$NGPU" -gt 1 ]; then
    # a port of its own, so that two jobs on one machine do not meet; precision is infer.py's flag, not the launcher's
    exec "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_processes "$NGPU" \
        --num_machines 1 --mixed_precision no --dynamo_backend no \
        --main_process_port "$((20000 + RANDOM % 20000))" "$SYNTHEOCC_ROOT/infer.py" "$@"
fi
exec "$PYTHON" "$SYNTHEOCC_ROOT/infer.py" "$@"
