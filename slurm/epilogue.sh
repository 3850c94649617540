#!/usr/bin/env bash
# Whether this node has anything left of a job: processes that hold its shared memory, sockets, files. Says what, and fails then.
#
#   srun --ntasks-per-node=1 slurm/epilogue.sh     at the end of a batch script (`nothing_left` of env.sh)
#   Epilog=/path/to/epilogue.sh                    in slurm.conf, by the administrator; removes what kills left behind
#
#   --clean     removes a socket and two empty files, which stay when everything was killed at once, and no more: needs the
#               program `proxystore` in PATH, which touches nothing that is in use
#
# Shared memory has no name in the file system: it is gone when no process has it.
set -uo pipefail

clean=false
[[ ${1-} != --clean && ${SLURM_SCRIPT_CONTEXT-} != epilog* ]] || clean=true
job=${SLURM_JOB_ID:?is to name a job}
user=${SLURM_JOB_USER:-$(id -un)}
uid=${SLURM_JOB_UID:-$(id -u "$user")}
as_user=()
[[ $(id -u) = "$uid" ]] || as_user=(runuser -u "$user" --)

# Where the library puts sockets and locks of the namespace NAME, in the order in which it looks.
directories() {
    printf '%s\n' ${PROXYSTORE_RUNTIME_DIR:+"$PROXYSTORE_RUNTIME_DIR/$1"} \
        ${XDG_RUNTIME_DIR:+"$XDG_RUNTIME_DIR/proxystore/$1"} "${TMPDIR:-/tmp}/proxystore-$uid/shm/$1"
}

holders() {
    local process
    for process in /proc/[0-9]*; do
        # Both files can be gone at any moment, and are none of ours then.
        grep -qs '/memfd:proxystore-' "$process/maps" 2>/dev/null || continue
        tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qx "SLURM_JOB_ID=$job" || continue
        printf 'process %s holds shared memory of job %s: %s\n' "${process#/proc/}" "$job" \
            "$(tr '\0' ' ' 2>/dev/null <"$process/cmdline")"
    done
}

files() {
    local directory
    while read -r directory; do
        [[ ! -e $directory ]] || find "$directory" -printf 'left: %p\n'
    done < <(directories "slurm-$job")
}

# Processes that have just ended take a moment.
for ((i = 0; i < 50; i++)); do
    left=$(holders)
    [[ -n $left ]] || break
    sleep 0.1
done
if $clean && [[ -z $left ]] && command -v proxystore >/dev/null; then
    "${as_user[@]}" proxystore gc "shm://slurm-$job" >/dev/null
fi
left+=$(files)
if [[ -n $left ]]; then
    printf '%s: %s\n' "${SLURMD_NODENAME:-$HOSTNAME}" "$left" >&2
    exit 1
fi
printf '%s: nothing left of job %s\n' "${SLURMD_NODENAME:-$HOSTNAME}" "$job"
