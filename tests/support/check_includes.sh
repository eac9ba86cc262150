#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Proves the include boundaries of docs/architecture.md from the #include lines. Own headers are included as
# "folder/name.h" from the top, so that each line names the room it enters.
set -eu
fail=0
allowed() { # folder -> folders it may include
    case $1 in
        kernels) echo "kernels" ;;
        hal) echo "hal kernels" ;;
        sim) echo "sim hal/backend.h hal/base.h hal/hal.h hal/bitstream.h kernels" ;;
        host) echo "host hal kernels sim/sim.h" ;;
        quantize) echo "quantize host hal kernels sim/sim.h" ;;
        service) echo "service host hal kernels sim/sim.h" ;;
        tests) echo "tests service quantize host sim hal kernels" ;;
    esac
}
for f in $(git ls-files -co --exclude-standard '*.c' '*.h'); do
    folder=${f%%/*}
    for inc in $(sed -n 's/^[ \t]*#[ \t]*include[ \t]*"\([^"]*\)".*/\1/p' "$f"); do
        ok=0
        for a in $(allowed "$folder"); do
            case "$inc" in "$a" | "$a"/*) ok=1 ;; esac
        done
        if [ $ok = 0 ]; then
            echo "check: $f includes \"$inc\": $folder/ may include only: $(allowed "$folder")" >&2
            fail=1
        fi
    done
done
# Third-party libraries stay where they belong.
only() { # header pattern, folders
    pattern=$1; shift
    for f in $(git ls-files -co --exclude-standard '*.c' '*.h' | xargs -r grep -lE "#[ \t]*include[ \t]*<($pattern)" 2>/dev/null); do
        ok=0
        for a in "$@" tests; do case "$f" in "$a"/*) ok=1 ;; esac; done
        [ $ok = 1 ] || { echo "check: $f includes <$pattern>: allowed in: $*" >&2; fail=1; }
    done
}
only 'grpc/' service
only 'dnnl' host
only 'png.h|jpeglib.h' host
only 'openssl/' hal service
only 'CL/|xrt' hal
only 'xclbin.h' kernels hal
only 'immintrin.h' sim kernels
[ $fail = 0 ] && echo "check: include boundaries hold"
exit $fail
