#!/usr/bin/env bash
# What `nvcli flows --watch` costs while very many connections are open: nv-blast keeps them alive out of a namespace that is attached in mirror
# mode, the view is on a terminal of tmux, 200 x 50. Once a minute: CPU time of the view's thread, of the one that reads and meters and of the one
# that follows who is attached, in per cent of a core; the process's resident memory; how long the screen took to turn to another page and back
# by a key (median and worst of twelve); frames lost.
# As root, in namespaces of its own; needs tmux (Debian: tmux). Arguments: minutes (10), connections (50000), frames a second (5000).
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-10} connections=${2:-50000} rate=${3:-5000}
bin=${NV_BIN:-${CARGO_TARGET_DIR:-target}/release}
if [ -z "${NV_INSIDE:-}" ]; then
  for tool in tmux unshare python3; do
    command -v "$tool" >/dev/null || { echo "error: no $tool; try: apt-get install tmux util-linux python3" >&2; exit 1; }
  done
  [ -n "${NV_BUILT:-}" ] || cargo build --release --quiet -p nvcli -p nv-benches --bin nvcli --bin nv-blast
  exec env NV_INSIDE=1 unshare --net --mount --pid --fork --kill-child --mount-proc "$0" "$@"
fi
work=$(mktemp -d)
export TMUX_TMPDIR=$work
trap 'tmux kill-server 2>/dev/null || true; rm -rf "$work"' EXIT
mount -t tmpfs none /run && mkdir -p /run/netns
sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
ip link set lo up
ip netns add busy-1
ip netns exec busy-1 sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
ip link add end type veth peer name eth0 netns busy-1
ip -n busy-1 link set eth0 up
ip link set end up
"$bin/nvcli" --quiet attach netns:busy-1 --mode mirror >/dev/null
tmux -f /dev/null new-session -d -x 200 -y 50 "sh -c 'echo \$\$ > $work/pid; exec env LC_ALL=C.UTF-8 TERM=tmux-256color $bin/nvcli --quiet flows --watch'"
until tmux capture-pane -p 2>/dev/null | grep -q live; do sleep 0.1; done
pid=$(cat "$work/pid")
# All of them within ten seconds, then round and round.
ip netns exec busy-1 "$bin/nv-blast" eth0 64 "$connections" $((connections / 10)) "$connections" >/dev/null
ip netns exec busy-1 "$bin/nv-blast" eth0 64 $((rate * 60 * (minutes + 1))) "$rate" "$connections" >/dev/null &
sender=$!
python3 - "$pid" "$minutes" <<'PYTHON'
import os, re, subprocess, sys, time
pid, minutes = sys.argv[1], int(sys.argv[2])
tick = os.sysconf("SC_CLK_TCK")
tmux = lambda *a: subprocess.run(("tmux",) + a, check=True, capture_output=True, text=True).stdout
screen = lambda: tmux("capture-pane", "-p")
def cpu():
    of = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        text = open(f"/proc/{pid}/task/{task}/stat").read()
        name, rest = text[text.index("(") + 1:text.rindex(")")], text[text.rindex(")") + 2:].split()
        name = "view" if task == pid else name
        of[name] = of.get(name, 0) + (int(rest[11]) + int(rest[12])) / tick
    return of
resident = lambda: int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read())[1]) / 1024
def turn(key, title):
    began = time.monotonic()
    tmux("send-keys", key)
    while title not in screen().splitlines()[2]:
        if time.monotonic() - began > 10: sys.exit(f"{title} is never seen:\n{screen()}")
    return (time.monotonic() - began) * 1000
print(f"{'minute':>6} {'view %':>7} {'meter %':>8} {'roster %':>8} {'all %':>6} {'MiB':>6} {'key ms':>7} {'worst':>6} {'load':>5}  screen", flush=True)
for minute in range(1, minutes + 1):
    before, began, took = cpu(), time.monotonic(), []
    for _ in range(6):
        time.sleep(max(0, began + 10 * (len(took) // 2 + 1) - 1 - time.monotonic()))
        took += [turn("2", "HEALTH"), turn("1", "CLIENT")]
    time.sleep(max(0, began + 60 - time.monotonic()))
    seconds, after = time.monotonic() - began, cpu()
    share = lambda name: (after.get(name, 0) - before.get(name, 0)) * 100 / seconds
    whole = sum(after.values()) - sum(before.values())
    took.sort()
    top = " ".join(screen().splitlines()[0].split())
    print(f"{minute:>6} {share('view'):>7.2f} {share('meter'):>8.2f} {share('roster'):>8.2f} {whole * 100 / seconds:>6.2f} {resident():>6.1f} {took[len(took) // 2]:>7.0f} {took[-1]:>6.0f} {os.getloadavg()[0]:>5.1f}  {top}", flush=True)
PYTHON
kill "$sender" 2>/dev/null || true
"$bin/nvcli" --quiet detach --all >/dev/null
