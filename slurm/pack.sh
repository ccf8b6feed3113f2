#!/usr/bin/env bash
# sbatch --array=0-15 slurm/pack.sh configs/pack/newsclippings.yaml a.b=c ...
# Every task packs its share of the shards; the last one writes index and manifest. Tasks that were killed or ran
# out of time: submit the same line again, only what is missing is made.
#SBATCH --job-name=promptmeup-pack
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -euo pipefail
config=${1:?usage: sbatch --array=0-15 slurm/pack.sh CONFIG.yaml [a.b=c ...]}
shift
# shellcheck source=slurm/env.sh
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

task=$((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0}))
exec ${IN_CONTAINER[@]+"${IN_CONTAINER[@]}"} python -u shards/pack.py --config "$config" "$@" \
  "task=$task" "num_tasks=${SLURM_ARRAY_TASK_COUNT:-1}" "processes=${SLURM_CPUS_PER_TASK:-1}"
