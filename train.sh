#!/usr/bin/env bash
# Train SyntheOcc, on all visible GPUs. Sets up what is missing first (see utils/setup_env.sh).
#
#   bash train.sh --pretrained_model_name_or_path=ckp/stable-diffusion-v2-1 --dataroot_path=data/nuscenes ...
#   EXP_NAME=mine MODEL_DIR=ckp/stable-diffusion-v2-1 bash train.sh --use_cbgs --mixed_precision=bf16
#   bash train.sh ... --resume_from_checkpoint=latest                  goes on where it stopped
#
# Flags: those of train.py (bash train.sh --help); recipes: docs/training.md. Environment: EXP_NAME (results go to
# ckp/EXP_NAME), OUTPUT_DIR, MODEL_DIR, DATA_USED (folder of MPI files), WANDB_DISABLED, HF_HUB_OFFLINE; a flag wins over
# a variable. NGPU=1 trains on one GPU; without a GPU, NGPU=2 trains on two processes of the CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/utils/setup_env.sh"
ensure_env

GPUS="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
NGPU="${NGPU:-$GPUS}"
if [ "$NGPU" -gt 1 ]; then
    # without it accelerate starts processes on a machine without GPUs that know nothing of each other
    if [ "$GPUS" -eq 0 ]; then export ACCELERATE_USE_CPU=true; fi
    # a port of its own, so that two jobs on one machine do not meet; precision is train.py's flag, not the launcher's
    exec "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_processes "$NGPU" \
        --num_machines 1 --mixed_precision no --dynamo_backend no \
        --main_process_port "$((20000 + RANDOM % 20000))" "$SYNTHEOCC_ROOT/train.py" "$@"
fi
exec "$PYTHON" "$SYNTHEOCC_ROOT/train.py" "$@"
