#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# House rules that a script can see: licence lines, no marks of unfinished work, file size, formatting (when
# clang-format is installed).
set -eu
fail=0
for f in $(git ls-files -co --exclude-standard '*.c' '*.h' '*.cl' '*.sh' '*.py' '*.proto'); do
    head -n 3 "$f" | grep -q 'SPDX-License-Identifier: Apache-2.0' || { echo "check: $f: no SPDX line" >&2; fail=1; }
done
marks=$(git ls-files -co --exclude-standard '*.c' '*.h' '*.cl' | xargs -r grep -nE 'TODO|FIXME|XXX' || true)
[ -z "$marks" ] || { echo "check: marks of unfinished work:" >&2; echo "$marks" >&2; fail=1; }
long=$(git ls-files -co --exclude-standard '*.c' '*.h' | xargs -r wc -l | awk '$2 != "total" && $1 > 900 {print $2 " has " $1 " lines"}')
[ -z "$long" ] || { echo "check: more than one room under one roof (900 lines): $long" >&2; fail=1; }
if command -v clang-format >/dev/null 2>&1; then
    bad=$(git ls-files -co --exclude-standard '*.c' '*.h' | xargs -r clang-format --dry-run 2>&1 | grep -E 'warning' | cut -d: -f1 | sort -u || true)
    [ -z "$bad" ] || { echo "check: run 'make format':" $bad >&2; fail=1; }
else
    echo "check: clang-format is not installed: formatting not checked"
fi
[ $fail = 0 ] && echo "check: sources follow the house rules"
exit $fail
