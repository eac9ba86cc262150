#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# plugin_report.sh BUILD NAME:MISSING...: which optional HAL plug-ins were built, and why not. MISSING: the pkg-config
# packages that its build wants and that are not there.
set -eu
build=$1; shift
for plugin in "$@"; do
    name=${plugin%%:*} missing=${plugin#*:}
    if [ -n "$missing" ]; then
        echo "plug-in $name: NOT built: pkg-config does not know $missing (see 'make deps')"
    else
        echo "plug-in $name: built"
    fi
done
echo "built: $build/bin (also as build/bin)"
