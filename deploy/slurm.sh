#!/usr/bin/env bash
# A Slurm cluster of several node daemons on this one machine, to try sweeps on.
#
#   deploy/slurm.sh start            # then: export SLURM_CONF=FOLDER/slurm.conf
#   deploy/slurm.sh kill NODE        # as when the power of a node fails: its daemon and all its tasks, at once
#   deploy/slurm.sh status | stop
#
# Everything lies in $SLURM_TRIAL (default: /tmp/slurm-trial-UID); the daemons listen on loopback alone.
# SLURM_TRIAL_NODES (default 2) nodes have SLURM_TRIAL_CPUS (default 2) CPUs each, whatever the machine has.
# Needs Debian's slurmctld, slurmd, slurm-client and munge.
set -euo pipefail

folder=${SLURM_TRIAL:-/tmp/slurm-trial-$(id -u)}
nodes=${SLURM_TRIAL_NODES:-2}
cpus=${SLURM_TRIAL_CPUS:-2}
export SLURM_CONF=$folder/slurm.conf PATH=$PATH:/usr/sbin

main() {
    case ${1:-} in
    start) start ;;
    stop) stop ;;
    status) sinfo --Node --long && squeue ;;
    kill) kill_node "${2:?which node?}" ;;
    *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
}

start() {
    mkdir -p -m 755 "$folder" "$folder/state"
    configure
    if ! alive munged; then
        [ -e "$folder/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
        munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --num-threads=2 \
            --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    fi
    alive slurmctld || slurmctld -c
    for node in $(node_names); do
        mkdir -p "$folder/spool-$node"
        alive "$node" || slurmd -N "$node"
    done
    until [ "$(sinfo --noheader --Node --states=idle,mix,alloc --format=%N | sort -u | wc -l)" = "$nodes" ]; do
        ((SECONDS < 60)) || { echo "the nodes do not come up: see $folder/*.log" >&2 && exit 1; }
        sleep 0.5
    done
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    for node in $(node_names); do
        kill_node "$node"
    done
    end slurmctld
    end munged
    rm -rf "$folder"
}

configure() {
    {
        cat <<CONF
ClusterName=trial
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=16817
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
SlurmdTimeout=10
KillWait=5
CONF
        for node in $(node_names); do
            echo "NodeName=$node NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((17000 + ${node#n}))" \
                "CPUs=$cpus RealMemory=16000 State=UNKNOWN"
        done
        echo "PartitionName=trial Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
    } >"$SLURM_CONF"
}

node_names() {
    seq -f 'n%g' "$nodes"
}

alive() {
    [ -s "$folder/$1.pid" ] && kill -0 "$(cat "$folder/$1.pid" 2>/dev/null)" 2>/dev/null
}

end() {
    ! alive "$1" || kill "$(cat "$folder/$1.pid")"
    while alive "$1"; do sleep 0.1; done
}

kill_node() {
    local signal
    ! alive "$1" || kill -KILL "$(cat "$folder/$1.pid")"
    rm -f "$folder/$1.pid"
    for signal in STOP KILL; do # none may live to report the end of another
        processes_of "$1" | xargs --no-run-if-empty kill -s "$signal" 2>/dev/null || true
    done
}

# The daemons of tasks write to the node's log; what they run carries the node's name.
processes_of() {
    local process
    for process in /proc/[0-9]*; do
        if grep --quiet --null-data --line-regexp "SLURMD_NODENAME=$1" "$process/environ" 2>/dev/null ||
            find "$process/fd" -lname "$folder/$1.log" 2>/dev/null | grep --quiet .; then
            echo "${process#/proc/}"
        fi
    done
}

main "$@"
