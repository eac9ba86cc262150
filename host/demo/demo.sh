#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The main job on real input: quantize the shipped network, serve it on the simulated accelerator, score the shipped
# pictures with a stock gRPC client, stop the server. Exits non-zero if anything fails or a label is wrong.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${BW_BIN:?set by make: the directory of the blockwave programs}
python=${PYTHON:-/usr/bin/python3}
work=$(mktemp -d "${TMPDIR:-/tmp}/blockwave-demo.XXXXXX")
server=
stop() {
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" || true
    fi
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM
PATH="$bin:$PATH"
digits="$here/digits"

for format in msfp12 msfp16; do
    echo "== quantize to $format"
    blockwave quantize "$digits/digits.onnx" -o "$work/digits-$format.bw" --format "$format" --name "digits-$format" \
        --calib "$digits/calib" --preprocess "$digits/preprocess.json" --labels "$digits/labels.txt"
done

echo "== serve on sim:"
blockwave serve "$work/digits-msfp12.bw" "$work/digits-msfp16.bw" --device sim: --grpc 127.0.0.1:0 \
    --port-file "$work/port" 2>"$work/server.log" &
server=$!
for _ in $(seq 100); do
    [ -s "$work/port" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; server=; exit 1; }
    sleep 0.1
done
[ -s "$work/port" ] || { echo "demo: the server did not become ready in 10 s" >&2; cat "$work/server.log" >&2; exit 1; }
cat "$work/server.log"

echo "== score with python3-grpcio on stubs generated now"
mkdir "$work/stubs"
top=$(cd "$here/../.." && pwd)
"$python" -m grpc_tools.protoc -I"$top/service/proto" --python_out="$work/stubs" --grpc_python_out="$work/stubs" \
    "$top"/service/proto/*.proto
status=0
PYTHONPATH="$work/stubs" "$python" "$here/client.py" "127.0.0.1:$(cat "$work/port")" "$digits/pictures" \
    digits-msfp12 digits-msfp16 || status=$?

echo "== stop the server"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
tail -n 1 "$work/server.log"
[ "$code" = 0 ] || { echo "demo: the server ended with exit code $code" >&2; exit 1; }
[ "$status" = 0 ] && echo "demo: every label right"
exit "$status"
