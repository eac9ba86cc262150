#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# with_stubs.sh PROGRAM.py: runs a test program with stubs generated from service/proto on its path.
set -eu
python=${PYTHON:-/usr/bin/python3}
if ! why=$("$python" -c 'import grpc, grpc_tools, numpy, PIL' 2>&1); then
    echo "ok 1 - $1 # SKIP $(echo "$why" | tail -n 1): install python3-grpcio python3-grpc-tools python3-numpy python3-pil"
    exit 0
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/bw-service.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/stubs"
"$python" -m grpc_tools.protoc -I"$BW_TOP/service/proto" --python_out="$work/stubs" --grpc_python_out="$work/stubs" \
    "$BW_TOP"/service/proto/*.proto
status=0
BW_WORK="$work" PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$work/stubs:$BW_TOP/tests/service" \
    "$python" "$BW_TOP/tests/service/$1" || status=$?
exit $status
