#!/usr/bin/env bash
# A Slurm of one node on this machine, to try `make grid EXECUTOR=slurm` without a cluster.
#
#   workflow/one_node_slurm.sh start FOLDER    daemons, keys, state and logs all live in FOLDER
#   workflow/one_node_slurm.sh stop FOLDER
#
# Needs Debian's packages slurm-wlm and munge, and to be root: its configuration is linked from /etc/slurm, where jobs look
# for it, unless there is one already. The node has this machine's cores and memory, no accounting, and nothing limits a
# job to what it asked for.
set -euo pipefail
action=${1:?start or stop}
folder=$(realpath -m "${2:?a folder}")

place=/etc/slurm/slurm.conf

stop() {
    if [ "$(readlink "$place")" = "$folder/slurm.conf" ]; then rm "$place" "$(dirname "$place")/cgroup.conf"; fi
    for name in slurmd slurmctld munged; do
        if [ -f "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; fi
    done
}

start() {
    [ -e "$place" ] && { echo "error: there is a $place already, so this machine belongs to a cluster" >&2; exit 1; }
    mkdir -p "$folder/state" "$folder/spool" "$(dirname "$place")"
    chmod 755 "$folder"
    local socket="$folder/munge.socket" host
    host=$(hostname -s)
    [ -f "$folder/munge.key" ] || (umask 077 && dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none)
    munged --force --socket="$socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
    cat >"$folder/cgroup.conf" <<CGROUP
CgroupPlugin=cgroup/v1
CGROUP
    cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024)) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    ln -sf "$folder/slurm.conf" "$folder/cgroup.conf" "$(dirname "$place")/"
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        sinfo --noheader --format=%t 2>/dev/null | grep -q idle && return
        sleep 1
    done
    echo "error: the node did not come up: see $folder/slurmctld.log and $folder/slurmd.log" >&2
    stop
    exit 1
}

"$action"
