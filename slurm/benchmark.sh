#!/usr/bin/env bash
# Latency and bandwidth between nodes: pairs, all to one, one to all; a table, results as JSON and charts as SVG in $RESULTS.
#
#   cargo build --release --features cli --bin proxystore
#   sbatch slurm/benchmark.sh                                        two nodes, one and four processes of each
#   CONNECTOR=tcp SIZES=8..256MiB sbatch --nodes=8 slurm/benchmark.sh
#   LAUNCH=mpirun sbatch slurm/benchmark.sh                          as any MPI launcher starts it; it is no MPI program
#
# benches/README.md says how to read it, and what to expect of which network.
#
#SBATCH --job-name=proxystore-benchmark
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --time=00:15:00
set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

ranks proxystore bench --connector "${CONNECTOR:-tcp}" --sizes "${SIZES:-8..16MiB}" --window "${WINDOWS:-1,16}" \
    --time-budget "${BUDGET:-300ms}" --out "$RESULTS"
nothing_left
