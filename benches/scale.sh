#!/usr/bin/env bash
# A thousand containers on one host: the time to attach, list and detach them, every frame of each counted, what a frame
# costs at 1, 100 and 1,000 attached, and what is said to the one that a bridge has no port for. As root, in namespaces
# of its own; about two minutes, of which the first argument's containers (1000) and the second one's part (all, times or
# costs) take more or less. Fails when attaching takes over 20 s, a list over 100 ms, or a frame is not counted.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet -p nvcli -p nv-benches --bin nvcli --bin nv-scale
out=${CARGO_TARGET_DIR:-target}/release
exec "$out/nv-scale" "$out/nvcli" "${1:-1000}" "${2:-all}"
