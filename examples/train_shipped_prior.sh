#!/usr/bin/env bash
# The prior that ships in mrigsure/data/prior, from nothing: under two hours on one core.
# Every scan is simulated undersampled and noisy; no clean image is ever on disk. A run that was stopped goes on.
set -euo pipefail
out=${1:?usage: train_shipped_prior.sh FOLDER}
scans="--slices 2 --pattern random gaussian --coils 5 12 --noise 0.03 0.12"
training="--validation 0.04 --threads 1 --resume"

[ -d "$out/prepared64" ] || mrigsure simulate "$out/raw64" --volumes 600 --matrix 64 --acceleration 3 4 5 6 --center-fraction 0.12 $scans --seed 1
mrigsure prepare "$out/raw64" "$out/prepared64"
mrigsure train "$out/prepared64" --out "$out/prior64" --steps 1200 --rounds 2 --estimate-rounds 0 --round-steps 400 --round-scans 600 \
    --round-levels 6 --decay 0 --validation-scans 12 $training

# at 128 x 128: a round of draws, a round of point estimates, another round of draws, each learning from crops
[ -d "$out/prepared128" ] || mrigsure simulate "$out/raw128" --volumes 400 --matrix 128 --acceleration 3 4 5 6 8 --center-fraction 0.09 $scans --seed 3
mrigsure prepare "$out/raw128" "$out/prepared128"
rounds="--steps 0 --round-scans 200 --round-levels 6 --crop 64 --anchor 0.03 --ema 0.998 --keep-rounds $training"
mrigsure train "$out/prepared128" --out "$out/prior128" --init-from "$out/prior64" --rounds 1 --estimate-rounds 0 --round-steps 1200 \
    --decay 0 --validation-scans 8 $rounds
mrigsure train "$out/prepared128" --out "$out/prior128b" --init-from "$out/prior128/round_1" --rounds 2 --estimate-rounds 1 \
    --round-steps 1500 --decay 0.3 --validation-scans 6 $rounds
