#!/usr/bin/env bash
# An MPI program whose ranks pass proxies: nothing to start, no address to pass, nothing to clean up.
#
#   cargo build --release -p proxystore-mpi --features mpi --examples
#   sbatch slurm/mpi.sh                        srun --mpi=pmix
#   LAUNCH=mpirun sbatch slurm/mpi.sh          mpirun inside the job
#   LAUNCH=pmi2 sbatch slurm/mpi.sh            programs built with MPICH
#   MIB=1024 sbatch --nodes=8 slurm/mpi.sh     1 GiB to 8 nodes
#
#SBATCH --job-name=proxystore-mpi
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --time=00:10:00
set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

ranks mpi_broadcast "${MIB:-64}"
ranks mpi_halo
ranks mpi_task_farm
nothing_left
