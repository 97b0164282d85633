#!/bin/sh
# Three nodes on this machine; the one that answers is killed in the middle of an answer, and the answer continues.
#   sh examples/three-nodes.sh      from a checkout in which `make run` has been run once
set -eu
mesh=${MESH:-.venv/bin/mesh}
work=$(mktemp -d)
nodes=""
trap 'kill $nodes 2>/dev/null || true; wait; rm -rf "$work"' EXIT INT TERM

start() { # name, port, command and its arguments: starts a node and waits until it answers
    name=$1 port=$2
    shift 2
    MESH_NAME=$name "$mesh" "$@" --data "$work/$name" --port "$port" --mesh-host 127.0.0.1 >"$work/$name.log" 2>&1 &
    echo $! >"$work/$name.pid"
    nodes="$nodes $!"
    until curl --silent --fail "http://127.0.0.1:$port/readyz" >/dev/null; do
        kill -0 "$!" 2>/dev/null || { cat "$work/$name.log"; exit 1; }
        sleep 0.2
    done
}

for name in one two; do # two replicas of one model, ten tokens a second
    mkdir -p "$work/$name/models"
    cat >"$work/$name/models/echo.yaml" <<MODEL
name: echo
backend: fake
pinned: true
engine: {decode_tokens_per_s: 10}
MODEL
done
start one 18081 up
token=$("$mesh" token --data "$work/one")
start two 18082 join "$token"
start entry 18083 join "$token"

curl --silent --no-buffer --dump-header "$work/headers" http://127.0.0.1:18083/v1/completions \
    -H 'Content-Type: application/json' \
    -d '{"model": "echo", "prompt": "Once", "max_tokens": 40, "stream": true}' >"$work/answer" &
asked=$!
until grep -qi '^x-mesh-node' "$work/headers" 2>/dev/null; do sleep 0.1; done
answering=$(tr -d '\r' <"$work/headers" | sed -n 's/^[Xx]-[Mm]esh-[Nn]ode: //p')
sleep 1
echo "Node $answering answers. Killing it."
kill -9 "$(cat "$work/$answering.pid")"
wait "$asked"
tail -n 3 "$work/answer"
"$mesh" trace --data "$work/entry"
