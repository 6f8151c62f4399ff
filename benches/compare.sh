#!/usr/bin/env bash
# Whole processes beside each other: nvcli, nfpcapd and softflowd read the same traces, in turns. Prints for each trace the median of
# frames per CPU-second (user and system time of the process, all its threads), nvcli's ratio to it, and the highest resident memory.
#
#   benches/compare.sh [KIND...]      uniform zipf ipv6 short syn (nv-trace says what they are); all of them by default
#   FRAMES=4000000 CONNECTIONS=131072 ROUNDS=3 TRACES=/tmp    in the environment; a trace has about 100 octets a frame, and is read from the page cache
#
# As root: nfpcapd changes its user. All three may keep CONNECTIONS connections at the same time; records go to /dev/null (nvcli),
# files (nfpcapd) and a UDP socket that nobody reads (softflowd).
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
for tool in nfpcapd:nfdump softflowd:softflowd; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi
cargo build --release --quiet -p nvcli -p nv-benches --bin nvcli --bin nv-trace
export BIN=${CARGO_TARGET_DIR:-target}/release
export FRAMES=${FRAMES:-4000000} CONNECTIONS=${CONNECTIONS:-131072} ROUNDS=${ROUNDS:-3} TRACES=${TRACES:-${TMPDIR:-/tmp}}
exec python3 - "$@" <<'PYTHON'
import os, shutil, socket, statistics, subprocess, sys, tempfile

env = os.environ
frames, connections, rounds = int(env["FRAMES"]), env["CONNECTIONS"], int(env["ROUNDS"])
kinds = sys.argv[1:] or ["uniform", "zipf", "ipv6", "short", "syn"]
nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
nobody.bind(("127.0.0.1", 0))


def commands(trace, folder):
    nvcli = [env["BIN"] + "/nvcli", "flows", "--read", trace, "--max-connections", connections, "--output"]
    return {
        "nvcli, JSON": nvcli + ["json", "--no-identify"],
        "nvcli, CSV": nvcli + ["csv", "--no-identify"],
        "nvcli, JSON, applications": nvcli + ["json"],
        "nfpcapd": ["nfpcapd", "-r", trace, "-w", folder, "-B", connections],
        "softflowd": [
            "softflowd", "-d", "-6", "-r", trace, "-m", connections, "-v", "9",
            "-n", "127.0.0.1:%d" % nobody.getsockname()[1], "-p", folder + "/pid", "-c", "none",
        ],
    }


def run(command):
    """CPU-seconds and KiB of resident memory of one process."""
    with open(os.devnull, "r+b") as nowhere:
        process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=subprocess.PIPE)
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit("%s: exit %d: %s" % (" ".join(command), process.returncode, said.decode(errors="replace")[-500:]))
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss


print("%s frames, %s connections, %d rounds" % (frames, connections, rounds))
print("| trace | tool | M frames a CPU-second | lowest to highest | nvcli JSON is | resident MiB |")
print("|---|---|--:|--:|--:|--:|")
for kind in kinds:
    folder = tempfile.mkdtemp(dir=env["TRACES"], prefix="nv-compare-")
    try:
        os.chmod(folder, 0o777)
        trace = folder + "/trace.pcap"
        subprocess.run([env["BIN"] + "/nv-trace", kind, str(frames), connections, trace], check=True)
        rates, memory = {}, {}
        for _ in range(rounds):
            for tool, command in commands(trace, folder).items():
                cpu, resident = run(command)
                rates.setdefault(tool, []).append(frames / cpu / 1e6)
                memory[tool] = max(memory.get(tool, 0), resident)
        ours = statistics.median(rates["nvcli, JSON"])
        for tool, rate in rates.items():
            middle = statistics.median(rate)
            print("| %s | %s | %.2f | %.2f to %.2f | %.1fx | %.0f |" % (
                kind, tool, middle, min(rate), max(rate), ours / middle, memory[tool] / 1024), flush=True)
    finally:
        shutil.rmtree(folder)
PYTHON
