#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A private Python environment with the engines that bench.py compares with, in build/peers. What cannot be installed is
# reported as absent; that is no failure. With BW_PEERS set nothing is installed.
set -u
[ -n "${BW_PEERS:-}" ] && exit 0
dir=build/peers
if [ ! -x "$dir/bin/python" ] && ! "${PYTHON:-python3}" -m venv "$dir" >"$dir.log" 2>&1; then
    echo "peers: absent, a virtual environment could not be made: $(grep -v '^$' "$dir.log" | tail -n 1)"
    rm -rf "$dir"
    exit 0
fi
for package in onnx onnxruntime openvino; do
    "$dir/bin/python" -c "import $package" 2>/dev/null && continue
    if ! "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 15 "$package" >"$dir.log" 2>&1; then
        echo "peer $package: absent, pip could not install it: $(grep -i error "$dir.log" | tail -n 1)"
    fi
done
exit 0
