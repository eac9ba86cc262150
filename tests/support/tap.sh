# SPDX-License-Identifier: Apache-2.0
# Sourced by the command tests: TAP results of commands run with captured output. Needs $program, the command under
# test; gives $work, a directory that goes with the test.
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
n=0
fail=0
result() { # condition's exit status, name
    n=$((n + 1))
    if [ "$1" = 0 ]; then echo "ok $n - $2"; else
        echo "not ok $n - $2"
        sed 's/^/# /' "$work/out" "$work/err" 2>/dev/null | head -n 30
        fail=1
    fi
}
run() { # expected exit code, arguments
    want=$1
    shift
    "$program" "$@" >"$work/out" 2>"$work/err"
    code=$?
    [ "$code" = "$want" ] || echo "exit code $code, expected $want" >>"$work/err"
    [ "$code" = "$want" ]
}
has() { grep -q -e "$1" "$work/out"; }
says() { # exactly one line on stderr, with the text
    [ "$(wc -l <"$work/err")" = 1 ] && grep -q -e "$1" "$work/err"
}
