#!/usr/bin/env bash
# sbatch slurm/pretrain.sh configs/pretrain/base.yaml a.b=c ...
# One task per GPU. Ahead of the time limit Slurm sends USR2: the run saves, exits with 85 and is queued again.
#SBATCH --job-name=promptmeup
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -uo pipefail
cd "$SLURM_SUBMIT_DIR" || exit 1
# shellcheck source=slurm/env.sh
source slurm/env.sh

config=${1:?usage: sbatch slurm/pretrain.sh CONFIG.yaml [a.b=c ...]}
shift
# is all there that the run needs, on every node? DOCTOR=off sbatch ... leaves it out
if [ "${DOCTOR:-on}" != off ]; then
  srun --kill-on-bad-exit=1 python -u launch/doctor.py --config "$config" "$@" || exit
fi
# one srun task a rank: the deepspeed launcher would not pass USR2 on
srun --kill-on-bad-exit=1 --wait=60 python -u launch/pretrain.py --config "$config" "$@"
code=$?
if [ "$code" -eq 85 ]; then
  echo "saved before the time limit; back to the queue (start $((${SLURM_RESTART_COUNT:-0} + 1)) is over)"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
