#!/usr/bin/env bash
# Weak scaling: the same work for each process on 1, 2, 4 ... nodes of the job. A table for each number, and $RESULTS/scaling.jsonl.
#
#   cargo build --release --features cli --bin proxystore
#   sbatch --nodes=16 slurm/scaling.sh
#
# Pairs should move in proportion to the nodes. One to all shows what the owner's link, and who else passes on, make of it: on
# twice the nodes the time should grow by little.
#
#SBATCH --job-name=proxystore-scaling
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --time=00:30:00
set -euo pipefail
source "$SLURM_SUBMIT_DIR/slurm/env.sh"

for ((nodes = 1; ; nodes = nodes * 2 < SLURM_JOB_NUM_NODES ? nodes * 2 : SLURM_JOB_NUM_NODES)); do
    # No MPI program: any --mpi does.
    srun --mpi=none --nodes="$nodes" --ntasks="$((SLURM_NTASKS * nodes / SLURM_JOB_NUM_NODES))" \
        proxystore bench --connector "${CONNECTOR:-tcp}" --pattern pairs,one-to-all --sizes "${SIZES:-64KiB,16MiB}" --window 1 \
        --time-budget "${BUDGET:-300ms}" --out "$RESULTS/$nodes-nodes"
    cat "$RESULTS/$nodes-nodes/ranks.jsonl" >>"$RESULTS/scaling.jsonl"
    ((nodes < SLURM_JOB_NUM_NODES)) || break
done
nothing_left
