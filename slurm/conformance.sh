#!/usr/bin/env bash
# The contract of a connector, tested with one side on the first node of the job and the other on the second.
#
#   cargo test --release --all-features --test conformance --no-run
#   sbatch slurm/conformance.sh                     tcp
#   CONNECTOR=ucx sbatch slurm/conformance.sh
#
# The first node runs the cases; each process that a case needs beside it is a step on the second.
#
#SBATCH --job-name=proxystore-conformance
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:30:00
set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

# The newest that cargo built; its name ends in a number of cargo's.
program=$(find "$BUILT/deps" -maxdepth 1 -name 'conformance-*' -type f -perm -u+x -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2)
[[ -n $program ]] || { printf 'no conformance program in %s/deps\n' "$BUILT" >&2; exit 1; }

other=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)
[[ $other != "$SLURMD_NODENAME" ]] || { printf 'needs two nodes\n' >&2; exit 1; }
export CONFORMANCE_LAUNCHER="srun --overlap --mpi=none --nodes=1 --ntasks=1 --nodelist=$other --unbuffered --quiet --kill-on-bad-exit=0"
"$program" "${CONNECTOR:-tcp}-nodes"
nothing_left
