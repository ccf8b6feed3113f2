#!/usr/bin/env bash
# sbatch slurm/pretrain.sh configs/pretrain/base.yaml a.b=c ...
# One task per GPU. Ahead of the time limit Slurm sends USR2: the run saves and is queued again, as it is after a crash
# if it gained a checkpoint. See slurm/README.md.
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
config=${1:?usage: sbatch slurm/pretrain.sh CONFIG.yaml [a.b=c ...]}
shift
# shellcheck source=slurm/env.sh
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

# is all there that the run needs, on every node? DOCTOR=off sbatch ... leaves it out. Ten minutes to meet: libraries
# come slowly over a busy network. A job that has run already is not ended by it: the run knows how to get on
if [ "${DOCTOR:-on}" != off ]; then
  WAIT=600 ranks launch/doctor.py --config "$config" --timeout 600 "$@"
  code=$?
  if [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]; then exit "$code"; fi
  [ "$code" -eq 0 ] || echo "the doctor ended with $code; a job that was queued again starts all the same"
fi
ranks launch/pretrain.py --config "$config" "$@"
finish $?
