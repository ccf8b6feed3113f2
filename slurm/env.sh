# shellcheck shell=bash
# Sourced by every job script: where the ranks meet, and what each of them needs.
# Change the next three lines for a new cluster.
module purge 2>/dev/null || true                     # module load ... where the cluster has modules
export PATH="$SLURM_SUBMIT_DIR/.venv/bin:$PATH"      # the environment of `make setup`, on a shared file system
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"         # compute nodes rarely reach a model hub

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 40000))        # by job id: jobs on a shared node do not collide
export MASTER_ADDR MASTER_PORT
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun stopped inheriting it in Slurm 22.05
