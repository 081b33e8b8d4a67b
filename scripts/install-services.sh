#!/usr/bin/env bash
# Installs what tests need beside Python packages: promtool, from Debian.
# PostgreSQL comes in a wheel. Without root or apt the tests that need
# promtool are skipped, and say so.
set -eu
command -v promtool >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # Only the tool is wanted: the server must not start by itself.
    ln -sf /dev/null /etc/systemd/system/prometheus.service 2>/dev/null || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
    exit 0
fi
echo "promtool is not installed and cannot be: its tests will be skipped." >&2
