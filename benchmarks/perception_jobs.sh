#!/usr/bin/env bash
# SparseOcc's programs from end to end: a world, panoptic training on two GPUs and on one (the same curve?), prediction
# offline, online, in bfloat16 and again (the same grids?), RayPQ, pictures. From the repository's root:
#   OUT=results bash benchmarks/perception_jobs.sh
#   PRESET=tiny_pano SCENES=2 FRAMES=3 SIZE=96x54 STEPS=2 GPUS=1 PREC=no OUT=results bash benchmarks/perception_jobs.sh   # CPU
set -eu
OUT=${OUT:?say where the results go: OUT=folder}
W=${WORLD:-$OUT/world}
PRESET=${PRESET:-small_pano} SCENES=${SCENES:-8} FRAMES=${FRAMES:-12} SIZE=${SIZE:-800x448} STEPS=${STEPS:-300} GPUS=${GPUS:-2} PREC=${PREC:-bf16}
S="python3 -m syntheocc.commands"; export OMP_NUM_THREADS=2 PYTHONPATH=$PWD
$S world --out $W --scenes $SCENES --size $SIZE --key-frames $FRAMES 2>&1 | tail -2
T="occupancy train sparseocc --preset $PRESET --dataroot $W --max_train_steps $STEPS --global_batch_size 8 --micro_batch_size 4 --mixed_precision $PREC --dataloader_num_workers 4 --checkpointing_steps 0"
[ "$PRESET" = tiny_pano ] && T="${T/--global_batch_size 8 --micro_batch_size 4/--global_batch_size 2 --micro_batch_size 1}"
for n in 1 $GPUS; do
  python3 -m torch.distributed.run --standalone --nproc_per_node $n -m syntheocc.commands $T --output_dir $OUT/m$n 2>&1 | tail -1
done
python3 - <<P
import json; a,b=([json.loads(l)["loss"] for l in open("$OUT/m%s/log.jsonl" % n)] for n in (1, $GPUS))
print("steps", len(a), "first", a[0], "last", a[-1], "| largest relative difference of the curves, first 10 and all:", max(abs(x-y)/x for x,y in zip(a[:10],b)), max(abs(x-y)/x for x,y in zip(a,b)))
P
E="occupancy eval --weights $OUT/m1 --dataroot $W --metrics miou rayiou raypq --workers 4"
$S $E --output_dir $OUT/off 2>&1 | tail -3; $S $E --output_dir $OUT/on --online 2>&1 | tail -3; $S $E --output_dir $OUT/again 2>&1 | tail -3
[ "$PREC" = bf16 ] && $S $E --output_dir $OUT/bf16 --half bf16 --online 2>&1 | tail -3
$S occupancy predict --weights $OUT/m1 --dataroot $W --output_dir $OUT/off --pictures --max-samples 12 2>&1 | tail -2
python3 - <<P
import glob, json, numpy as np, os
for other in ("on", "again", "bf16"):
    files = sorted(glob.glob("$OUT/%s/*.npz" % other))
    same = [np.mean(np.load(f)["pred"] == np.load(f.replace("/%s/" % other, "/off/"))["pred"]) for f in files]
    if files: print(other, "voxels as offline: mean %.6f least %.6f" % (np.mean(same), min(same)), {k: v["figures"] for k, v in json.load(open("$OUT/%s/results.json" % other))["metrics"].items()})
P
cmp $OUT/off/results.json $OUT/again/results.json && echo "two evaluations are identical"
rm -f $OUT/*/*.npz $OUT/*/*.safetensors; ls $OUT
