#!/usr/bin/env bash
# The prior that ships in mrigsure/data/prior, from nothing: about five hours on one core, then one and a half on two.
# Every scan is simulated undersampled and noisy; the targets that the parity bench keeps are never read in training.
# A run that was stopped goes on. The prior that ships went through these stages with the versions of their day: seven
# rounds were drawn with 8 levels, the stages before the rounds that scans teach learned at full resolution alone once
# they were compiled, those rounds had no second draw, and no round's draws ended in sweeps (CHANGELOG.md). training.json
# has every stage's settings and figures.
set -euo pipefail
out=${1:?usage: train_shipped_prior.sh FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
training="--steps 0 --threads 1 --resume --keep-rounds --compile"

# 64 x 64, 2,000 scans at R = 4: a first stage and seven rounds, then two rounds of point estimates
python "$here/benchmarks/prior_parity.py" --run draws --work "$out/parity" --steps 1500 --rounds 7 --round-steps 1000 --round-levels 16 --round-scans 0 --decay 0 --log-sigma -1.5 1.5 --last-steps 0 --slices 2
mrigsure train "$out/parity/phantom-R4" --out "$out/prior64" --init-from "$out/parity/phantom-draws-R4-seed0/round_7" --rounds 2 \
    --estimate-rounds 2 --round-steps 800 --round-scans 1000 --round-levels 16 --decay 0 --validation 0.02 --targets draws --round-samples 1 $training

# 128 x 128, 800 scans: a round of point estimates, a round of draws, both learning from 64 rows at a time
[ -d "$out/prepared128" ] || mrigsure simulate "$out/raw128" --volumes 400 --slices 2 --matrix 128 --acceleration 3 4 5 \
    --center-fraction 0.1 --pattern random gaussian --coils 8 14 --noise 0.03 0.06 --seed 5
mrigsure prepare "$out/raw128" "$out/prepared128"
mrigsure train "$out/prepared128" --out "$out/prior128" --init-from "$out/prior64" --rounds 2 --estimate-rounds 1 --round-steps 1500 \
    --round-scans 120 --round-levels 16 --crop 64 --batch-size 4 --ema 0.998 --decay 0.5 --validation 0.04 --validation-scans 4 --targets draws --round-samples 1 $training

# six rounds that the scans teach
at128="--estimate-rounds 0 --crop 64 --batch-size 4 --ema 0.998 --validation 0.04 --validation-scans 8"
mrigsure train "$out/prepared128" --out "$out/scans128" --init-from "$out/prior128" --rounds 4 --round-steps 800 --round-scans 300 \
    --round-levels 16 --decay 0.4 $at128 $training
mrigsure train "$out/prepared128" --out "$out/scans128b" --init-from "$out/scans128" --rounds 2 --round-steps 1100 --round-scans 500 \
    --round-levels 16 --decay 0.5 $at128 $training

# four rounds more at full resolution, on a GPU in five minutes (eight were asked for; it was taken away); then one on a CPU, the rate falling
[ -d "$out/prepared600" ] || mrigsure simulate "$out/raw600" --volumes 600 --slices 2 --matrix 128 --acceleration 3 4 5 \
    --center-fraction 0.1 --pattern random gaussian --coils 8 14 --noise 0.03 0.06 --seed 5
mrigsure prepare "$out/raw600" "$out/prepared600"
again="--estimate-rounds 0 --batch-size 8 --ema 0.998 --validation 0.04 --validation-scans 16"
mrigsure train "$out/prepared600" --out "$out/scans600" --init-from "$out/scans128b" --rounds 8 --round-steps 500 --round-scans 400 \
    --round-levels 20 --decay 0.4 $again $training
mrigsure train "$out/prepared128" --out "$out/scans600b" --init-from "$out/scans600/round_4" --rounds 1 --round-steps 800 --round-scans 300 \
    --round-levels 16 --decay 1 --crop 64 $again $training

# two fine rounds, two processes: whole slices of 64 x 64 and 128 x 128 (four rounds were asked for, the first was taken), then 224 x 224 too
[ -d "$out/prepared224" ] || mrigsure simulate "$out/raw224" --volumes 150 --slices 2 --matrix 224 --acceleration 3 4 5 \
    --center-fraction 0.1 --pattern random gaussian --coils 8 14 --noise 0.03 0.06 --seed 6
mrigsure prepare "$out/raw224" "$out/prepared224"
fine="--estimate-rounds 0 --refine fine --round-levels 20 --batch-size 8 --decay 1 --ema 0.998 --log-sigma -2 1.5 --validation 0.03 --validation-scans 16"
torchrun --nproc-per-node 2 -m mrigsure.cli train "$out/parity/phantom-R4" "$out/prepared600" --out "$out/fine128" --init-from "$out/scans600b" \
    --rounds 4 --round-steps 500 --round-scans 480 --learning-rate 0.00075 $fine $training
torchrun --nproc-per-node 2 -m mrigsure.cli train "$out/parity/phantom-R4" "$out/prepared600" "$out/prepared224" --out "$out/fine224" \
    --init-from "$out/fine128/round_1" --rounds 1 --round-steps 450 --round-scans 160 --learning-rate 0.0006 --crop 128 $fine $training

# the Jacobian and the spread of the draws, on 40 scans of 128 x 128
mrigsure train "$out/prepared600" --out "$out/prior" --init-from "$out/fine224" --rounds 0 --validation 0.05 --validation-scans 40 $training
