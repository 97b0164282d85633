#!/bin/sh
# A streamed answer, as the server-sent events that it is made of. A node that asks for an API key finds it in API_KEY.
#   sh examples/chat.sh                               the node on 127.0.0.1:8080
#   sh examples/chat.sh http://127.0.0.1:8081         another one
set -eu
url=${1:-http://127.0.0.1:8080}
curl --fail-with-body --silent --show-error --no-buffer "$url/v1/chat/completions" \
    -H "Authorization: Bearer ${API_KEY:-none}" \
    -H 'Content-Type: application/json' \
    -d '{
        "messages": [
            {"role": "system", "content": "You answer in one sentence."},
            {"role": "user", "content": "Why is the sky blue?"}
        ],
        "max_tokens": 60,
        "temperature": 0.7,
        "stream": true,
        "stream_options": {"include_usage": true}
    }'
