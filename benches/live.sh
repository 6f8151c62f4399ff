#!/usr/bin/env bash
# The whole live way, from a sender in a container to the table: is every frame metered or counted as lost, and what does a frame cost?
# nv-blast sends frames of 131,072 connections out of a namespace that is attached in mirror mode; nv-br is read by `nvcli flows`,
# by `tcpdump -w /dev/null` and by `dumpcap`, in turns, at the same rate. Sender and reader have a processor of their own.
# Each reader is first shown four frames of each connection; what is printed of CPU time is of the frames after that: the reader's own (user and
# system) and what the sender's kernel part took, which the copy into the ring is part of. `whole` is all of the reader's life, opening the
# connections and writing their records included. Medians at the end.
# As root, in namespaces of its own; needs two processors, tcpdump and dumpcap (Debian: tcpdump wireshark-common).
# Arguments: rounds (3), seconds a run (4). NV_RATES="100000 200000 0": frames a second, 0 as many as can be. NV_LENGTHS="64 1400".
# NV_READERS="nvcli tcpdump dumpcap": also metering (nvcli that does not look behind headers), nvcli-SNAPLEN, tcpdump-SNAPLEN and none. NV_PERF=FILE: what perf sees of the readers.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} seconds=${2:-4}
rates=${NV_RATES:-100000 200000 0} lengths=${NV_LENGTHS:-64 1400} readers=${NV_READERS:-nvcli tcpdump dumpcap}
connections=${NV_CONNECTIONS:-131072}
opening=$((4 * connections))
bin=${CARGO_TARGET_DIR:-target}/release
if [ -z "${NV_INSIDE:-}" ]; then
  for tool in tcpdump dumpcap taskset; do
    command -v "$tool" >/dev/null || { echo "error: no $tool; try: apt-get install tcpdump wireshark-common util-linux" >&2; exit 1; }
  done
  [ -n "${NV_BUILT:-}" ] || cargo build --release --quiet -p nvcli -p nv-benches --bin nvcli --bin nv-blast
  exec env NV_INSIDE=1 unshare --net --mount --pid --fork --mount-proc "$0" "$rounds" "$seconds"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p /run/netns
mount -t tmpfs none /run/netns
sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
ip netns add c
ip netns exec c sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
ip link add end type veth peer name eth0 netns c
# Frames of any length, as super-frames are: nobody cuts them.
ip -n c link set eth0 mtu 65535 up
ip link set end mtu 65535 up
"$bin/nvcli" --quiet attach netns:c --mode mirror >/dev/null

# A shell of its own, so that `time` is the reader's alone.
reader() {
  local kind=$1 snap=${1#*-}
  case $kind in
    nvcli) set -- "$bin/nvcli" flows --output json --max-connections $((connections + 1000)) --duration 1h ;;
    metering) set -- "$bin/nvcli" flows --output json --max-connections $((connections + 1000)) --duration 1h --no-identify ;;
    nvcli-*) set -- "$bin/nvcli" flows --output json --max-connections $((connections + 1000)) --duration 1h --snaplen "$snap" ;;
    tcpdump) set -- tcpdump -i nv-br -n -B 32768 -w /dev/null ;;
    tcpdump-*) set -- tcpdump -i nv-br -n -B 32768 -s "$snap" -w /dev/null ;;
    dumpcap) set -- dumpcap -i nv-br -B 32 -w /dev/null ;;
    none) set -- sleep 1h ;;
  esac
  TIMEFORMAT='cpu %U %S'
  time taskset -c 1 "$@" >/dev/null
}

# Nanoseconds that the reader was on a processor, all its threads. tcpdump keeps frames for up to a second.
consumed() {
  sleep 1.2
  cat /proc/"$1"/task/*/schedstat | awk '{ n += $1 } END { printf "%.0f", n }'
}

blast() { ip netns exec c taskset -c 0 "$bin/nv-blast" eth0 "$@"; }

printf '%-13s %6s %9s %10s %10s %9s %11s %10s %9s %10s\n' reader octets rate sent seen lost unaccounted "reader ns" "whole ns" "sender ns"
for length in $lengths; do
  for rate in $rates; do
    frames=$(((rate > 0 ? rate : 250000) * seconds))
    for round in $(seq "$rounds"); do
      for kind in $readers; do
        : > "$work/said"
        reader "$kind" 2>"$work/said" &
        shell=$!
        case $kind in
          none) ;;
          dumpcap) until grep -q 'File:' "$work/said"; do kill -0 $shell; done ;;
          tcpdump*) until grep -q 'listening on' "$work/said"; do kill -0 $shell; done ;;
          *) until grep -q 'metering' "$work/said"; do kill -0 $shell; done ;;
        esac
        # The shell, taskset's place taken by the reader.
        until pid=$(pgrep -P $shell); do :; done
        blast "$length" "$opening" 200000 "$connections" >/dev/null
        before=$(consumed "$pid")
        if [ -n "${NV_PERF:-}" ]; then
          perf record -q -e cpu-clock -F 5000 -g -p "$pid" -o "$NV_PERF.$kind.$length.$rate" &
          perf=$!
        fi
        said=$(blast "$length" "$frames" "$rate" "$connections" "$opening")
        after=$(consumed "$pid")
        [ -z "${NV_PERF:-}" ] || { kill -INT "$perf"; wait "$perf" || true; }
        kill -INT "$pid"
        wait $shell || true
        case $kind in
          nvcli* | metering)
            seen=$(sed -nE 's/^([0-9,]+) frames read.*/\1/p' "$work/said" | tr -d ,)
            lost=$(sed -nE 's/.* ([0-9,]+) dropped by the kernel.*/\1/p' "$work/said" | tr -d ,) ;;
          tcpdump*)
            seen=$(sed -nE 's/^([0-9]+) packets captured/\1/p' "$work/said")
            lost=$(sed -nE 's/^([0-9]+) packets dropped by kernel/\1/p' "$work/said") ;;
          dumpcap)
            seen=$(sed -nE "s/^Packets received\/dropped on interface 'nv-br': ([0-9]+)\/([0-9]+).*/\1/p" "$work/said")
            lost=$(sed -nE "s/^Packets received\/dropped on interface 'nv-br': ([0-9]+)\/([0-9]+).*/\2/p" "$work/said") ;;
          none) seen=0 lost=0 ;;
        esac
        awk -v kind="$kind" -v length_="$length" -v rate="$rate" -v seen="${seen:-0}" -v lost="${lost:-0}" -v said="$said" \
          -v opened="$opening" -v steady=$((after - before)) '
          /^cpu / { cpu = $2 + $3 }
          END {
            split(said, word, " "); sent = word[1]; achieved = word[7]
            match(said, /; [0-9.]+ s of CPU/); kernel = substr(said, RSTART + 2, RLENGTH - 11)
            off = (kind == "none") ? 0 : opened + sent - seen - lost
            later = seen - opened
            printf "%-13s %6d %9d %10d %10d %9d %11d %10.0f %9.0f %10.0f\n", kind, length_, achieved, opened + sent, seen, lost, off, \
              (later > 0) ? steady / later : 0, (seen > 0) ? cpu * 1e9 / seen : 0, kernel * 1e9 / sent
          }' "$work/said" | tee -a "$work/all"
        echo "$rate" >> "$work/rates"
      done
    done
  done
done
echo
echo "medians:"
paste -d ' ' "$work/rates" "$work/all" | awk '
  { r = $1 == 0 ? "max" : $1; k = sprintf("%-13s %6s %9s", $2, $3, r); n[k]++
    a[k, n[k]] = $9; b[k, n[k]] = $11; c[k, n[k]] = $10; d[k, n[k]] = $4; lost[k] += $7; off[k] += $8 }
  function median(x, k, n,   i, j, t, v) {
    for (i = 1; i <= n; i++) v[i] = x[k, i]
    for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (v[j] < v[i]) { t = v[i]; v[i] = v[j]; v[j] = t }
    return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
  }
  END { for (k in n) printf "%s  reader %6.0f ns  whole %6.0f ns  sender %6.0f ns  rate %7.0f  lost %d  unaccounted %d\n", k, median(a, k, n[k]), \
    median(c, k, n[k]), median(b, k, n[k]), median(d, k, n[k]), lost[k], off[k] }' | sort
"$bin/nvcli" --quiet detach --all >/dev/null
