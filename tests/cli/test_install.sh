#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# make install into an empty root; a program built against it with pkg-config alone; make uninstall leaves nothing.
set -u
cd "$BW_TOP" || exit 1
n=0
check() { # name, exit code
    n=$((n + 1))
    [ "$2" = 0 ] && echo "ok $n - $1" || { echo "not ok $n - $1"; cat "$TMPDIR/log"; }
}
root="$TMPDIR/root"
make -s install DESTDIR="$root" PREFIX=/usr >"$TMPDIR/log" 2>&1
check "make install" $?
missing=
for m in swemu hwemu; do # XRT's emulation, where it was built
    [ ! -e "$BW_BIN/../lib/xrt/libxrt_$m.so.2" ] || [ -e "$root/usr/lib/blockwave/xrt/libxrt_$m.so.2" ] || missing="$missing libxrt_$m.so.2"
done
for f in bin/blockwave-xrt-emulation libexec/blockwave/blockwave-card share/man/man1/blockwave-xrt-emulation.1 bin/blockwave bin/blockwave-quantize bin/blockwave-check bin/blockwave-serve bin/blockwave-bench-client lib/libblockwave.a \
    lib/pkgconfig/blockwave.pc include/blockwave/host/session.h share/man/man1/blockwave.1; do
    [ -e "$root/usr/$f" ] || missing="$missing $f"
done
echo "missing:$missing" >"$TMPDIR/log"
[ -z "$missing" ]
check "everything is where it belongs" $?
plugins=
for so in "$BW_BIN"/../lib/libbw_hal_*.so; do
    name=${so##*/libbw_hal_} name=${name%.so}
    [ ! -e "$so" ] || { [ -e "$root/usr/lib/blockwave/libbw_hal_$name.so" ] && plugins="$plugins $name"; } || plugins="$plugins missing:$name"
done
env -u BW_PLUGIN_PATH "$root/usr/bin/blockwave" devices >"$TMPDIR/log" 2>&1
case "$plugins" in *missing:*) false ;; *) true ;; esac && for name in $plugins; do
    ! grep "^$name: not usable: .*not installed" "$TMPDIR/log" || exit 1
done
check "the installed command finds its plug-ins (${plugins:- none built})" $?
"$root/usr/bin/blockwave" quantize host/demo/digits/digits.onnx -o "$TMPDIR/digits.bw" --quiet >"$TMPDIR/log" 2>&1
check "the installed command finds its programs" $?
"$root/usr/bin/blockwave-xrt-emulation" run -- "$root/usr/bin/blockwave" devices >"$TMPDIR/log" 2>&1
code=$?
if grep -q 'was not built\|xrt: not usable: XRT cannot be loaded' "$TMPDIR/log"; then
    n=$((n + 1)); echo "ok $n - installed emulation of a card # SKIP $(tail -n 1 "$TMPDIR/log")"
else
    [ $code = 0 ] && grep -q '^xrt:0' "$TMPDIR/log"
    check "installed emulation of a card" $?
fi
san=${BW_SAN:+-fsanitize=$BW_SAN}
flags=$(PKG_CONFIG_PATH="$root/usr/lib/pkgconfig" pkg-config --define-variable=prefix="$root/usr" --cflags --libs --static blockwave 2>"$TMPDIR/log")
# shellcheck disable=SC2086
${CC:-cc} $san -o "$TMPDIR/example" tests/data/install_example.c $flags >"$TMPDIR/log" 2>&1
check "a program builds with pkg-config blockwave" $?
"$TMPDIR/example" "$TMPDIR/digits.bw" >"$TMPDIR/log" 2>&1 && grep -q '10 outputs' "$TMPDIR/log"
check "and scores" $?
make -s uninstall DESTDIR="$root" PREFIX=/usr >"$TMPDIR/log" 2>&1
find "$root" -type f >>"$TMPDIR/log"
[ -z "$(find "$root" -type f)" ]
check "make uninstall leaves no file" $?
echo "1..$n"
