#!/usr/bin/env bash
# What an attachment costs the application: iperf3 into the container and out of it, and wrk against nginx in it, not
# attached, in mirror mode and inline, each without and with a reader (`nvcli flows`), taken in turns; medians over the
# rounds, each against the unattached one of the same round: throughput, and CPU time of client and server together for
# the same amount of work (the kernel's work for a frame is done on the time of the process that sends it), which says
# more on a machine where others work too. As root, in namespaces of its own.
# Needs iperf3, wrk and nginx (Debian: iperf3 wrk nginx-light). Arguments: rounds (5), seconds a measurement (2).
# NV_VARIANTS="none mirror inline" takes some of them only.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5} seconds=${2:-2}
nvcli=${CARGO_TARGET_DIR:-target}/release/nvcli
if [ -z "${NV_INSIDE:-}" ]; then
  for tool in iperf3 wrk nginx; do
    command -v "$tool" >/dev/null || { echo "error: no $tool; try: apt-get install iperf3 wrk nginx-light" >&2; exit 1; }
  done
  cargo build --release --quiet -p nvcli
  exec env NV_INSIDE=1 unshare --net --mount --pid --fork --mount-proc "$0" "$rounds" "$seconds"
fi

# Whatever is started below ends with this process: it is the first one of its own pid namespace.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p /run/netns
mount -t tmpfs none /run/netns
ip link set lo up
ip link add lan type bridge
ip link set lan up
for n in 2 3; do
  ip netns add "c$n"
  ip link add "end$n" type veth peer name eth0 netns "c$n"
  ip link set "end$n" master lan up
  ip -n "c$n" link set lo up
  ip -n "c$n" link set eth0 up
  ip -n "c$n" addr add "10.79.0.$n/24" dev eth0
done
cat > "$work/nginx.conf" <<CONF
daemon off; worker_processes 1; pid $work/pid; error_log $work/error;
events { worker_connections 512; }
http { access_log off; keepalive_requests 1000000;
  server { listen 80; location / { return 200 "$(printf 'x%.0s' $(seq 1000))"; } } }
CONF
ip netns exec c2 nginx -c "$work/nginx.conf" &
nginx=$!
ip netns exec c2 iperf3 -s >/dev/null &
iperf=$!
client() { ip netns exec c3 "$@"; }
until client wrk -c 1 -t 1 -d 1 http://10.79.0.2/ >/dev/null 2>&1; do :; done
until client iperf3 -c 10.79.0.2 -n 1K >/dev/null 2>&1; do :; done
nginx="$nginx $(pgrep -P "$nginx")"

# User and system time that these processes have used. Unit: 10 ms.
ticks() {
  local pid
  for pid in "$@"; do cat "/proc/$pid/stat"; done | awk '{sub(/.*\) /, ""); sum += $12 + $13} END {print sum}'
}

# Runs a client and prints what `awk` makes of its output, then the CPU time of it and of the server. Unit: 10 ms.
metered() {
  local server=$1 program=$2 before
  shift 2
  before=$(ticks $server)
  TIMEFORMAT='%U %S'
  { time client "$@" > "$work/out" 2>/dev/null; } 2> "$work/time"
  awk "$program" "$work/out"
  awk -v server=$(($(ticks $server) - before)) '{print ($1 + $2) * 100 + server}' "$work/time"
}

# Mbit/s into the container, out of it, and requests a second, each with its CPU time.
measure() {
  local mbits='/receiver/ {print $(NF-2)}'
  metered "$iperf" "$mbits" iperf3 -f m -t "$seconds" -c 10.79.0.2
  metered "$iperf" "$mbits" iperf3 -f m -t "$seconds" -c 10.79.0.2 -R
  metered "$nginx" '/^Requests\/sec/ {print $2}' wrk -c 32 -t 1 -d "$seconds" http://10.79.0.2/
}

# One variant: `MODE` or `MODE+reader`.
variant() {
  local reader=
  [ "$1" = none ] || "$nvcli" -q attach netns:c2 --mode "${1%+*}" >/dev/null
  if [ "${1#*+}" = reader ]; then
    "$nvcli" -q flows --output json >/dev/null 2>&1 &
    reader=$!
    until ss -0 2>/dev/null | grep -q nv-br || ! kill -0 "$reader"; do :; done
  fi
  measure | tr '\n' ' ' | sed "s/^/$1 /; s/\$/\n/" | tee -a "$work/raw"
  if [ -n "$reader" ]; then
    kill -INT "$reader"
    wait "$reader" || true
  fi
  [ "$1" = none ] || "$nvcli" -q detach --all >/dev/null
}

variants=(${NV_VARIANTS:-none mirror inline mirror+reader inline+reader})
echo "variant; Mbit/s in, CPU (10 ms); Mbit/s out, CPU; requests/s, CPU:"
for round in $(seq "$rounds"); do
  for at in "${!variants[@]}"; do
    variant "${variants[(at + round) % ${#variants[@]}]}"
  done
done
echo
awk -v order="${variants[*]}" '
  function median(list, n,    i, j, t) {
    for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j] < list[j-1]; j--) { t = list[j]; list[j] = list[j-1]; list[j-1] = t }
    return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
  }
  { n[$1]++; for (k = 1; k <= 3; k++) { rate[$1, k, n[$1]] = $(2 * k); cost[$1, k, n[$1]] = $(2 * k + 1) / $(2 * k) } }
  END {
    printf "%-14s %29s %29s %29s\n", "", "into it: Mbit/s", "out of it: Mbit/s", "HTTP: requests/s"
    count = split(order, names, " ")
    for (v = 1; v <= count; v++) {
      name = names[v]; line = sprintf("%-14s", name)
      for (k = 1; k <= 3; k++) {
        # In each round against the unattached one of that round: what drifts is in both.
        for (r = 1; r <= n[name]; r++) {
          all[r] = rate[name, k, r]
          faster[r] = 100 * (rate[name, k, r] / rate["none", k, r] - 1)
          dearer[r] = 100 * (cost[name, k, r] / cost["none", k, r] - 1)
        }
        line = line sprintf(" %7.0f", median(all, n[name]))
        line = line (name == "none" ? sprintf("%22s", "") : sprintf(" %+6.1f %% CPU %+6.1f %%", median(faster, n[name]), median(dearer, n[name])))
      }
      print line
    }
  }' "$work/raw"
