#!/usr/bin/env bash
# Prints where tests put their files: in memory where there is plenty and programs may
# be started from there, as some tests do; else wherever temporary files go.
set -eu
memory=/dev/shm
usual=${TMPDIR:-/tmp}
free_kb=$(df --output=avail "$memory" 2>/dev/null | tail -n 1) || { echo "$usual"; exit 0; }
if [ "$free_kb" -gt 6000000 ] && probe=$(mktemp "$memory/probe.XXXXXX" 2>/dev/null); then
    printf '#!/bin/sh\n' >"$probe"
    chmod +x "$probe"
    "$probe" 2>/dev/null && usual=$memory
    rm -f "$probe"
fi
echo "$usual"
