#!/usr/bin/env bash
# sbatch --array=0-3 slurm/study.sh configs/study/ablation.yaml a.b=c ...
# Every task looks for stages that nobody runs, on one GPU or on several (--gpus-per-node=4: four stages at once). They
# may start in any order and one at a time. Ahead of the time limit stages save, and the task is queued again.
#SBATCH --job-name=promptmeup-study
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -uo pipefail
config=${1:?usage: sbatch --array=0-3 slurm/study.sh CONFIG.yaml [a.b=c ...]}
shift
# shellcheck source=slurm/env.sh
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

gpus=${CUDA_VISIBLE_DEVICES:-0}
gpus=${gpus//[^,]/}
# a stage a GPU, where the study does not say otherwise
grep -q '^processes:' "$config" || set -- "processes=$((${#gpus} + 1))" "$@"
ranks launch/study.py --config "$config" "$@"
code=$?
[ "$code" -ne 140 ] || code=85  # USR2 met it before or after its stages
# a stage that failed has been tried by every task; what a training of another one has gained is no reason to try again
if [ "$code" -ne 0 ] && [ "$code" -ne 85 ]; then
  echo "not queued again: exit code $code; submit the same line to try what failed once more"
  rm -f "$PROMPTMEUP_PROGRESS_FILE"
  exit "$code"
fi
finish "$code"
