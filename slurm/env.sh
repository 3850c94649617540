# shellcheck shell=bash
# Sourced by the batch scripts of this folder, and by yours: what a site changes once, and how ranks and services are started.
#
#   BUILT     where the programs are                        (target/release below the directory of submission)
#   FABRIC    infiniband, roce, slingshot, ethernet or auto (auto: what the first node has)
#   LAUNCH    how MPI ranks start: pmix, pmi2, mpirun       (pmix)
#   RESULTS   where results and logs go                     (results/JOBID below the directory of submission)
#
# sbatch passes variables on: FABRIC=roce LAUNCH=mpirun sbatch slurm/mpi.sh

# ---------------------------------------------------------------------------------------------------------------------
# 1. The site's modules: the MPI with which the programs were built.
#
#   module load openmpi

BUILT=${BUILT:-${SLURM_SUBMIT_DIR:-$PWD}/target/release}
LAUNCH=${LAUNCH:-pmix}
RESULTS=${RESULTS:-${SLURM_SUBMIT_DIR:-$PWD}/results/${SLURM_JOB_ID:-0}}
mkdir -p "$RESULTS"
PATH=$BUILT:$BUILT/examples:$PATH
export BUILT RESULTS PATH

# One store for all nodes of the job; it needs no address. Jobs of yours side by side do not meet: it is named for the job.
export PROXYSTORE_STORE=${PROXYSTORE_STORE:-tcp://}

# The nodes prove a secret to each other. It follows from a file in the home that they share. Where they share none:
#
#   PROXYSTORE_SECRET=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n'); export PROXYSTORE_SECRET

# ---------------------------------------------------------------------------------------------------------------------
# 2. The network. What stands here is for MPI (UCX_*, FI_*) and for tcp:// (PROXYSTORE_NET_DEVICES, an interface with an address).

fabric() {
    local state
    if compgen -G '/sys/class/cxi/cxi*' >/dev/null; then
        echo slingshot
        return
    fi
    for state in /sys/class/infiniband/*/ports/*/link_layer; do
        [[ -r $state ]] || continue
        case $(<"$state") in
            InfiniBand) echo infiniband; return ;;
            Ethernet) echo roce; return ;;
        esac
    done
    echo ethernet
}

FABRIC=${FABRIC:-auto}
[[ $FABRIC != auto ]] || FABRIC=$(fabric)
case $FABRIC in
    infiniband)
        # UCX finds devices and transports itself. With several adapters a node, name the one near the ranks' processors:
        #   export UCX_NET_DEVICES=mlx5_0:1
        export FI_PROVIDER=${FI_PROVIDER:-"verbs;ofi_rxm"}
        : "${PROXYSTORE_NET_DEVICES:=ib0}" # IP over InfiniBand
        ;;
    roce)
        # Version 2, as UCX picks it where it may; some sites need the index that `show_gids` prints, and a traffic class
        # that the switches treat as lossless:
        #   export UCX_IB_GID_INDEX=3 UCX_IB_TRAFFIC_CLASS=106
        export FI_PROVIDER=${FI_PROVIDER:-"verbs;ofi_rxm"}
        ;;
    slingshot)
        # Slurm gives each step a network of its own (VNI), and steps do not reach each other. For jobs of several steps that
        # talk, as workflow.sh, ask for one of the job, in the script or on the command line:
        #   #SBATCH --network=job_vni
        export FI_PROVIDER=${FI_PROVIDER:-cxi}
        : "${PROXYSTORE_NET_DEVICES:=hsn0}"
        ;;
    ethernet)
        # No adapter that reads memory: TCP between nodes, shared memory on them.
        export UCX_TLS=${UCX_TLS:-tcp,self,sm} FI_PROVIDER=${FI_PROVIDER:-tcp}
        # The interface of the host's name, unless named:  export PROXYSTORE_NET_DEVICES=eth1
        ;;
    *) printf 'env.sh: FABRIC=%s is none of infiniband, roce, slingshot, ethernet, auto\n' "$FABRIC" >&2; exit 2 ;;
esac
# An interface that is not there would be refused; then the one of the host's name is used.
if [[ -n ${PROXYSTORE_NET_DEVICES-} ]]; then
    if [[ -e /sys/class/net/${PROXYSTORE_NET_DEVICES%%,*} ]]; then
        export PROXYSTORE_NET_DEVICES
    else
        printf 'env.sh: no interface %s here; using that of the host name\n' "$PROXYSTORE_NET_DEVICES" >&2
        unset PROXYSTORE_NET_DEVICES
    fi
fi

# Adapters pin the memory that they read. Limits come from the shell of submission unless Slurm is told otherwise
# (PropagateResourceLimitsExcept=MEMLOCK in slurm.conf, and no limit for slurmd).
if [[ $FABRIC != ethernet && $(ulimit -l) != unlimited ]]; then
    printf 'env.sh: only %s KiB of memory may be locked (ulimit -l): UCX and Mercury may fail or copy\n' "$(ulimit -l)" >&2
fi

# ---------------------------------------------------------------------------------------------------------------------
# 3. How things start.

# ranks PROGRAM ARGUMENT...: one process for each task of the job, as $LAUNCH says.
ranks() {
    case $LAUNCH in
        mpirun)
            # Open MPI takes nodes and tasks from Slurm; MPICH's mpiexec, too.
            mpirun "$@"
            ;;
        *)
            # An MPI and its --mpi go together: Open MPI with pmix, MPICH with pmi2 or, from 4.2 on, pmix. Of a wrong pair
            # every rank is the only one of its job (MPICH), or MPI_Init fails (Open MPI).
            srun --mpi="$LAUNCH" "$@"
            ;;
    esac
}

# serve_start ARGUMENT...: `proxystore serve ARGUMENT...` on each node of the job; returns when all are ready. Objects then
# outlive the step that puts them.
serve_start() {
    local node log waited=0
    # What sbatch was told of tasks would count for this srun, too: eight services on two nodes.
    env -u SLURM_NTASKS -u SLURM_NPROCS -u SLURM_NTASKS_PER_NODE -u SLURM_CPUS_PER_TASK -u SLURM_DISTRIBUTION \
        srun --overlap --mpi=none --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --cpus-per-task=1 --mem=0 --kill-on-bad-exit=0 --no-kill --wait=0 --input=none --unbuffered \
        --job-name=proxystore-serve --output="$RESULTS/serve-%N.log" proxystore serve "$@" &
    serve=$!
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        log=$RESULTS/serve-$node.log
        until grep -qs '\bready\b' "$log"; do
            if ! kill -0 "$serve" 2>/dev/null || ((waited++ > 600)); then
                printf 'env.sh: no service on %s:\n' "$node" >&2
                cat "$log" >&2
                return 1
            fi
            sleep 0.1
        done
    done
}

# serve_stop: ends them in order. Not `kill`, which has srun kill them at once, nor a bare scancel of the step.
serve_stop() {
    local step
    step=$(squeue --noheader --steps --jobs "$SLURM_JOB_ID" --format '%i %j' | awk '$2 == "proxystore-serve" { print $1 }')
    [[ -z $step ]] || scancel --signal=TERM "$step"
    wait "$serve"
}

# nothing_left: whether no node of the job has anything left of it; says what.
nothing_left() {
    srun --mpi=none --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        "${SLURM_SUBMIT_DIR:-$PWD}/slurm/epilogue.sh"
}
