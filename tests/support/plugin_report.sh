#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# plugin_report.sh BUILD: which optional HAL plug-ins were built, and why not.
set -eu
build=$1
for name in opencl xrt; do
    if [ -e "$build/lib/libbw_hal_$name.so" ]; then
        echo "plug-in $name: built"
    elif [ ! -d "hal/plugins/$name" ]; then
        echo "plug-in $name: not built (this version has no source for it)"
    else
        echo "plug-in $name: not built (its library is missing, see 'make deps')"
    fi
done
echo "built: $build/bin (also as build/bin)"
