#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The demo as a test: it must end with exit 0, and must notice a wrong label.
set -u
cd "$BW_TOP" || exit 1
if sh host/demo/demo.sh >"$TMPDIR/log" 2>&1 && grep -q 'every label right' "$TMPDIR/log"; then
    echo "ok 1 - demo"
else
    echo "not ok 1 - demo"
    cat "$TMPDIR/log"
fi
# One label falsified: the demo has to fail.
mkdir "$TMPDIR/copy" && cp -r host service "$TMPDIR/copy/" || exit 1
sed -i '2s/,.*/,0/' "$TMPDIR/copy/host/demo/digits/pictures/labels.csv"
if sh "$TMPDIR/copy/host/demo/demo.sh" >"$TMPDIR/log" 2>&1; then
    echo "not ok 2 - the demo notices a wrong label"
    cat "$TMPDIR/log"
else
    grep -q 'WRONG' "$TMPDIR/log" && echo "ok 2 - the demo notices a wrong label" || { echo "not ok 2 - failed for another reason"; cat "$TMPDIR/log"; }
fi
echo 1..2
