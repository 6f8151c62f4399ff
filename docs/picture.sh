#!/usr/bin/env bash
# Makes the README's picture of `nvcli flows --watch` from the real program: docs/watch.svg. As root; needs tmux, iproute2, python3, and nvcli
# as $NVCLI (default: target/debug/nvcli). Everything happens in namespaces of its own, which go with it.
#
#   docs/picture.sh [COLUMNS] [ROWS] > docs/watch.svg
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${NV_PICTURE_INSIDE:-}" ]; then
  nvcli=$(realpath "${NVCLI:-target/debug/nvcli}")
  NVCLI=$nvcli NV_PICTURE_INSIDE=1 exec unshare --net --mount --pid --fork --kill-child --mount-proc bash "$0" "$@"
fi
columns=${1:-126} rows=${2:-26}
scratch=$(mktemp -d) socket=picture.$$
trap 'tmux -L "$socket" kill-server 2>/dev/null || true; rm -rf "$scratch"' EXIT
mount -t tmpfs tmpfs /run && mkdir -p /run/netns
exec 3>&1 1>&2
ip link set lo up
ip link add bridge0 type bridge && ip link set bridge0 up
number=1
for name in web-1 web-2 api-1 db-1 cache-1; do
  number=$((number + 1))
  ip netns add "$name"
  ip link add "v$number" type veth peer name eth0 netns "$name"
  ip link set "v$number" master bridge0 up
  ip -n "$name" addr add "172.18.0.$number/24" dev eth0
  ip -n "$name" link set lo up && ip -n "$name" link set eth0 up
done
"$NVCLI" attach netns:web-1 netns:web-2 netns:api-1 netns:db-1 netns:cache-1
for role in web-1:web:2 web-2:web:3 api-1:api:4 db-1:db:5 cache-1:cache:6; do
  IFS=: read -r name kind host <<< "$role"
  ip netns exec "$name" python3 docs/picture-traffic.py "$kind" "172.18.0.$host" &
done
tmux -L "$socket" -f /dev/null new-session -d -x "$columns" -y "$rows" "exec $NVCLI flows --watch"
tmux -L "$socket" set -g status off
sleep "${SECONDS_SHOWN:-12}"
tmux -L "$socket" capture-pane -e -p > "$scratch/screen"
python3 docs/picture.py "$columns" < "$scratch/screen" >&3
