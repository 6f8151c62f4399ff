#!/usr/bin/env bash
# What the agent costs when nothing happens, and how soon it sees a new container. Prints a table for docs/performance.md.
#   unshare --net --mount bash benches/agent.sh [NAMESPACES] [SECONDS]
# With DOCKER_HOST set (.ci/with-engine) also: from a container's start to its first metered frame.
set -euo pipefail
cd "$(dirname "$0")/.."
nvcli=${NVCLI:-target/release/nvcli}
number=${1:-100} seconds=${2:-60}
work=$(mktemp -d -t nv-agent.XXXXXX)
agent=
finish() {
  if [ -n "$agent" ]; then kill "$agent" 2>/dev/null && wait "$agent" || true; fi
  rm -rf "$work"
}
trap finish EXIT
ip link set lo up
mount -t tmpfs tmpfs /run/netns 2>/dev/null || { mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns; }

start() {
  "$nvcli" agent --socket "$work/sock" "$@" 2> "$work/log" &
  agent=$!
  for _ in $(seq 600); do
    grep -q ready: "$work/log" && return
    kill -0 "$agent" || { cat "$work/log"; exit 1; }
    sleep 0.1
  done
  cat "$work/log"; exit 1
}
ask() { curl -s --unix-socket "$work/sock" "http://agent$1"; }
cpu() { awk '{print $14 + $15}' "/proc/$agent/stat"; }

for mode in inline mirror; do
  ip link add idle-br type bridge
  ip link set idle-br up
  targets=()
  for n in $(seq "$number"); do
    ip netns add "idle-$n"
    ip link add "idle-$n" type veth peer name eth0 netns "idle-$n"
    ip link set "idle-$n" master idle-br up
    ip -n "idle-$n" addr add "10.99.$((n / 250)).$((n % 250 + 1))/16" dev eth0
    ip -n "idle-$n" link set eth0 up
    targets+=(--target "netns:idle-$n")
  done
  start --no-engine --mode "$mode" --on-exit detach "${targets[@]}"
  attached=$(ask /v1/status | python3 -c 'import json,sys; print(json.load(sys.stdin)["interfacesAttached"])')
  sleep 10 # neighbour discovery and multicast reports of the new interfaces
  before=$(cpu); sleep "$seconds"; after=$(cpu)
  python3 - "$mode" "$attached" "$before" "$after" "$seconds" "$(awk '/VmRSS/ {print $2}' "/proc/$agent/status")" <<'PY'
import os, sys
mode, attached, before, after, seconds, rss = sys.argv[1], *map(float, sys.argv[2:])
share = (after - before) / os.sysconf("SC_CLK_TCK") / seconds
print(f"| {mode} | {attached:.0f} idle namespaces | {100 * share:.2f} % of a core | {rss / 1024:.1f} MiB |")
PY
  kill "$agent"; wait "$agent" || true; agent=
  # The namespace goes when the kernel gets to it, the link at once.
  for n in $(seq "$number"); do ip link del "idle-$n"; ip netns del "idle-$n"; done
  ip link del idle-br
done

[ -n "${DOCKER_HOST:-}" ] || exit 0
mkdir -p "$work/image/bin"
cp "$(command -v busybox)" "$work/image/bin/busybox"
for applet in sh ping; do ln -s busybox "$work/image/bin/$applet"; done
tar -C "$work/image" -c . | docker import - nvb:agent >/dev/null
gateway=$(ip -4 -o addr show docker0 | awk '{sub("/.*", "", $4); print $4}')
for mode in inline mirror; do
  start --engine "${DOCKER_HOST#unix://}" --mode "$mode"
  for n in $(seq 20); do
    # 200 packets a second from the first moment on: the first one that is metered tells when the metering began.
    docker run -d --name "soon-$n" nvb:agent /bin/ping -i 0.005 -q "$gateway" >/dev/null
    sleep 0.3
    docker inspect -f '{{.Name}} {{.State.StartedAt}}' "soon-$n"
  done > "$work/started"
  # Until what the last one sent has left the ring.
  sleep 1
  ask "/v1/flows" > "$work/flows"
  python3 - "$mode" "$work/started" "$work/flows" <<'PY'
import datetime, json, statistics, sys
mode, started, flows = sys.argv[1:]
first = {}
for line in open(flows):
    flow = json.loads(line)
    if flow["protocolIdentifier"] == 1:
        name = flow["workload"]
        first[name] = min(first.get(name, 1 << 62), flow["flowStartMicroseconds"])
took = []
for line in open(started):
    name, at = line.split()
    at = datetime.datetime.fromisoformat(at[:26] + "+00:00").timestamp()
    took.append(first[name[1:]] / 1e3 - at * 1e3)
print(f"| {mode} | {len(took)} containers, start to first metered frame | median {statistics.median(took):.0f} ms | worst {max(took):.0f} ms |")
PY
  docker rm -f $(docker ps -aq) >/dev/null
  kill "$agent"; wait "$agent" || true; agent=
done
