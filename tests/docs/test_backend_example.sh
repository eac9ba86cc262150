#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The plug-in printed in docs/backend.md compiles without a warning and passes the device conformance suite.
set -u
name="the backend of docs/backend.md passes the conformance suite"
dir=$(mktemp -d "${TMPDIR:-/tmp}/bw-doc.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
suite="$BW_BIN/../tests/conformance/test_devices"
cd "$BW_TOP" || exit 1
if [ ! -x "$suite" ]; then
    echo "ok 1 - $name # SKIP the suite is not built ($suite)"
    exit 0
fi
awk '/^```c$/ {on = 1; next} /^```$/ {on = 0} on' docs/backend.md >"$dir/mine.c"
if ! ${CC:-cc} -std=c11 -Wall -Wextra -Werror -shared -fPIC -I. -o "$dir/libbw_hal_mine.so" "$dir/mine.c" >"$dir/log" 2>&1; then
    sed 's/^/# /' "$dir/log"
    echo "not ok 1 - the backend of docs/backend.md compiles"
    exit 1
fi
if BW_PLUGIN_PATH="$dir" BW_DEVICES="mine:0" CMOCKA_MESSAGE_OUTPUT=TAP "$suite" >"$dir/log" 2>&1 &&
    [ "$(grep -c '^ok ' "$dir/log")" -ge 6 ]; then
    echo "ok 1 - $name"
else
    sed 's/^/# /' "$dir/log"
    echo "not ok 1 - $name"
    exit 1
fi
