#!/usr/bin/env bash
# A job that does not end by itself in its first run: services, states of one step in memory, ranks of a second step at work. After a
# requeue it starts anew, and ends.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --time=00:05:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

serve_start --bytes 256MiB
ranks mpi_checkpoint write "$RESULTS/tokens" 4
if ((${SLURM_RESTART_COUNT:-0} == 0)); then
    touch "$RESULTS/at-work"
    ranks mpi_halo 256 100000000
fi
ranks mpi_checkpoint read "$RESULTS/tokens"
serve_stop
nothing_left
