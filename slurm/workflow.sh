#!/usr/bin/env bash
# Two job steps, one after the other: the ranks of the first leave their state in memory and end, those of the second, fewer, go on
# with it. A service on each node keeps the memory in between.
#
#   cargo build --release --features cli --bin proxystore
#   cargo build --release -p proxystore-mpi --features mpi --examples
#   sbatch slurm/workflow.sh
#   LAUNCH=mpirun sbatch slurm/workflow.sh
#
# Slingshot: the steps have to share a network; add  #SBATCH --network=job_vni
#
#SBATCH --job-name=proxystore-workflow
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --time=00:10:00
set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

# Below what the job may use of a node's memory, for it counts to the job: see --mem.
serve_start --bytes "${BYTES:-512MiB}"

ranks mpi_checkpoint write "$RESULTS/tokens" "${MIB:-16}"
# Nobody holds the states now but the services.
ranks mpi_checkpoint read "$RESULTS/tokens"

serve_stop
nothing_left
