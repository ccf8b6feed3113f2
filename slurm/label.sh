#!/usr/bin/env bash
# sbatch slurm/label.sh configs/label/base.yaml teacher=runs/teacher/model splits=[packed/train] a.b=c ...
# One task per GPU, each labels its share. Killed or out of time: submit the same line again, finished shards are kept.
#SBATCH --job-name=promptmeup-label
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -uo pipefail
config=${1:?usage: sbatch slurm/label.sh CONFIG.yaml teacher=RUN/model splits=[SPLIT] [a.b=c ...]}
shift
# shellcheck source=slurm/env.sh
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

ranks launch/label.py --config "$config" "$@"
