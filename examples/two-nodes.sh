#!/bin/sh
# Two nodes on this machine as one service: the first has a model, the second is asked for it.
#   sh examples/two-nodes.sh        from a checkout in which `make run` has been run once
set -eu
mesh=${MESH:-.venv/bin/mesh}
work=$(mktemp -d)
nodes=""
trap 'kill $nodes 2>/dev/null || true; wait; rm -rf "$work"' EXIT INT TERM

start() { # name, port, command and its arguments: starts a node and waits until it answers
    name=$1 port=$2
    shift 2
    MESH_NAME=$name "$mesh" "$@" --data "$work/$name" --port "$port" --mesh-host 127.0.0.1 >"$work/$name.log" 2>&1 &
    nodes="$nodes $!"
    until curl --silent --fail "http://127.0.0.1:$port/readyz" >/dev/null; do
        kill -0 "$!" 2>/dev/null || { cat "$work/$name.log"; exit 1; }
        sleep 0.2
    done
}

mkdir -p "$work/one/models"
"$mesh" models add backend:fake --name echo --data "$work/one" >/dev/null # only the first node has this model
start one 18081 up
start two 18082 join "$("$mesh" token --data "$work/one")"

echo "Asking the second node for a model that the first one has:"
curl --silent --include --no-buffer http://127.0.0.1:18082/v1/chat/completions \
    -H 'Content-Type: application/json' \
    -d '{"model": "echo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}'
echo
"$mesh" explain --data "$work/two"
"$mesh" trace --data "$work/two"
