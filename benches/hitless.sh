#!/usr/bin/env bash
# What connections notice of attach and detach: 20 rounds each under HTTP, TCP and 1 ms UDP probes, IPv4 and IPv6, beside
# a quiet machine and beside the order "link down, rename, link up". As root, in namespaces of its own; about a minute.
# Fails when a request failed, a connection was reset, or the median of the longest gaps is above 10 ms.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet -p nvcli -p nv-benches --bin nvcli --bin nv-hitless
out=${CARGO_TARGET_DIR:-target}/release
exec "$out/nv-hitless" "$out/nvcli" "${1:-20}"
