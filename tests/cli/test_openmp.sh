#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The programs that run CPU stages let OpenMP's idle threads sleep, unless the user says otherwise. The OpenMP runtime
# itself tells what it has understood (OMP_DISPLAY_ENV).
set -u
unset OMP_WAIT_POLICY GOMP_SPINCOUNT
program=$BW_BIN/blockwave
. "$BW_TOP/tests/support/tap.sh"
if ! ldd "$BW_BIN/blockwave-serve" | grep -q libgomp; then
    echo "1..0 # SKIP oneDNN is not built with GCC's OpenMP here"
    exit 0
fi
spins() { # command...: the spin count of the runtime that is in force in the end
    OMP_DISPLAY_ENV=verbose "$@" 2>&1 | sed -n "s/.*GOMP_SPINCOUNT = '\(.*\)'/\1/p" | tail -n 1
}
plain=$(spins "$program" devices)
[ "$plain" -gt 0 ] 2>"$work/err"
result $? "without it threads would spin (${plain:-?} turns)"
for command in "run" "eval" "featurize" "profile" "quantize" "serve"; do
    [ "$(spins "$program" $command --help)" = 0 ]
    result $? "$command: they sleep"
done
[ "$(OMP_WAIT_POLICY=active spins "$program" serve --help)" != 0 ]
result $? "unless OMP_WAIT_POLICY says otherwise"
[ "$(GOMP_SPINCOUNT=77 spins "$program" serve --help)" = 77 ]
result $? "or GOMP_SPINCOUNT"
"$program" run --no-such-option "a  b" '' -- '*' 2>"$work/err"
[ $? = 2 ] && grep -q "no-such-option" "$work/err"
result $? "arguments arrive unchanged"
echo "1..$n"
exit $fail
