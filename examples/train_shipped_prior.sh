#!/usr/bin/env bash
# The prior that ships in mrigsure/data/prior, from nothing: about two hours on one core.
# Every scan is simulated undersampled and noisy; no clean image is ever on disk.
set -euo pipefail
out=${1:?usage: train_shipped_prior.sh FOLDER}
common="--coils 6 12 --noise 0.04 0.12"

mrigsure simulate "$out/raw64" --volumes 600 --slices 2 --matrix 64 --acceleration 3 4 5 6 --center-fraction 0.12 $common --seed 1
mrigsure prepare "$out/raw64" "$out/prepared64"
mrigsure train "$out/prepared64" --out "$out/prior64" --steps 1200 --rounds 2 --round-steps 500 --round-scans 400 \
    --learning-rate 0.0005 --validation 0.03 --validation-scans 8 --threads 1

mrigsure simulate "$out/raw128" --volumes 90 --slices 2 --matrix 128 --acceleration 3 4 5 6 8 --center-fraction 0.09 $common --seed 3
mrigsure prepare "$out/raw128" "$out/prepared128"
mrigsure train "$out/prepared128" --out "$out/prior128" --init-from "$out/prior64" --steps 0 --rounds 1 --round-steps 350 \
    --batch-size 4 --validation 0.06 --validation-scans 6 --threads 1
