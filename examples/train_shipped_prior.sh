#!/usr/bin/env bash
# The prior that ships in mrigsure/data/prior, from nothing: about an hour on one core.
# Every scan is simulated undersampled and noisy; no clean image is ever on disk. A run that was stopped goes on.
set -euo pipefail
out=${1:?usage: train_shipped_prior.sh FOLDER}
scans="--slices 2 --pattern random gaussian --coils 5 12 --noise 0.03 0.12"
training="--validation 0.04 --validation-scans 12 --threads 1 --resume"

[ -d "$out/prepared64" ] || mrigsure simulate "$out/raw64" --volumes 600 --matrix 64 --acceleration 3 4 5 6 --center-fraction 0.12 $scans --seed 1
mrigsure prepare "$out/raw64" "$out/prepared64"
mrigsure train "$out/prepared64" --out "$out/prior64" --steps 1200 --rounds 2 --round-steps 400 --round-scans 600 \
    --round-levels 6 --decay 0 $training

[ -d "$out/prepared128" ] || mrigsure simulate "$out/raw128" --volumes 200 --matrix 128 --acceleration 3 4 5 6 8 --center-fraction 0.09 $scans --seed 3
mrigsure prepare "$out/raw128" "$out/prepared128"
mrigsure train "$out/prepared128" --out "$out/prior128" --init-from "$out/prior64" --steps 0 --rounds 3 --round-steps 400 \
    --round-scans 240 --round-levels 6 --crop 96 $training
