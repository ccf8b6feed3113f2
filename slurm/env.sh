# shellcheck shell=bash
# Sourced by every job script: where the ranks meet, what each of them needs, and how a job is queued again.
# What differs between clusters stands in site.sh.
cd "$SLURM_SUBMIT_DIR" || exit 1
set +u  # scripts of modules and conda take unset variables for empty ones
# shellcheck source=slurm/site.sh
source slurm/site.sh
set -u
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"           # compute nodes rarely reach a model hub
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun stopped inheriting it in Slurm 22.05

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# by job id, so that jobs on a shared node do not collide, and below what Linux gives to outgoing connections (32768)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# rank 0 writes here with every checkpoint, its step and a line that is never the same, so that a script can tell a
# start that gained something
export PROMPTMEUP_PROGRESS_FILE="${PROMPTMEUP_PROGRESS_FILE:-$PWD/.progress-$SLURM_JOB_ID}"
progress() { cat "$PROMPTMEUP_PROGRESS_FILE" 2>/dev/null || echo none; }
step_of() { echo "${1%%$'\n'*}"; }
started_at=$(progress)

# One srun task a rank: the deepspeed launcher would not pass USR2 on. When one fails, the others say why and end by
# themselves; a minute later srun ends what is left.
ranks() { srun --kill-on-bad-exit=0 --wait="${WAIT:-60}" ${IN_CONTAINER[@]+"${IN_CONTAINER[@]}"} python -u "$@"; }

# finish CODE: end the job as its ranks ended; back to the queue where that is worth it.
# 85: saved ahead of the time limit. 86: the same, but no step was gained since the start.
finish() {
  local code=$1 restarts=${SLURM_RESTART_COUNT:-0} job=$SLURM_JOB_ID
  # one task of an array has the number of all of them as its job's, and requeue would take all of them
  [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  if [ "$code" -eq 0 ]; then
    rm -f "$PROMPTMEUP_PROGRESS_FILE"
    exit 0
  fi
  echo "start $((restarts + 1)) of job $job ended with $code; last checkpoint: step $(step_of "$(progress)")"
  if [ "$code" -eq 2 ]; then
    echo "not queued again: the configuration is wrong"
  elif [ "$code" -ne 85 ] && [ "$(progress)" = "$started_at" ]; then
    echo "not queued again: no checkpoint was gained since the start (step $(step_of "$started_at")), so the next would end like it"
  elif [ "$restarts" -ge "${PROMPTMEUP_MAX_REQUEUES:-100}" ]; then
    echo "not queued again: it was $restarts times already (PROMPTMEUP_MAX_REQUEUES)"
  else
    echo "back to the queue"  # first, since Slurm may end this script before it hears of its success
    scontrol requeue "$job" && exit 0
    echo "scontrol requeue failed; submit the same line again to resume"
  fi
  exit "$code"
}
