#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the commands of README.md as they stand there, in a copy of the files they read, and checks that every link
# leads somewhere. `make demo` and `make test` are run by tests/service/test_demo.sh and by whoever runs this.
set -u
cd "$BW_TOP" || exit 1
n=0
result() { # exit code, name
    n=$((n + 1))
    if [ "$1" = 0 ]; then echo "ok $n - $2"; else echo "not ok $n - $2"; sed 's/^/# /' "$TMPDIR/log"; fi
}
for page in README.md CONTRIBUTING.md docs/*.md; do
    dir=$(dirname "$page")
    : >"$TMPDIR/log"
    for link in $(grep -o '](\([^)#]*\)' "$page" | sed 's/^](//'); do
        case "$link" in http*) continue ;; esac
        [ -e "$dir/$link" ] || echo "$page: $link leads nowhere" >>"$TMPDIR/log"
    done
    [ ! -s "$TMPDIR/log" ]
    result $? "links of $page"
done
mkdir -p "$TMPDIR/clone/host" && cp -r host/demo "$TMPDIR/clone/host/"
cd "$TMPDIR/clone" || exit 1
PATH="$BW_BIN:$PATH"
# The lines that begin with "$ blockwave".
sed -n 's/^\$ \(blockwave .*\)/\1/p' "$BW_TOP/README.md" >"$TMPDIR/commands"
while read -r command; do
    sh -c "$command" >"$TMPDIR/log" 2>&1 </dev/null
    result $? "$command"
done <"$TMPDIR/commands"
echo "1..$n"
