#!/usr/bin/env bash
# Installs what tests need beside Python packages, from Debian: Prometheus with promtool,
# Alertmanager, redis-server, shellcheck, Chromium with a font, and Java for Spark. PostgreSQL
# comes in a wheel. Without root or apt the tests that need them are skipped, and say so.
set -eu
packages=()
command -v promtool >/dev/null || packages+=(prometheus)
command -v prometheus-alertmanager >/dev/null || packages+=(prometheus-alertmanager)
command -v redis-server >/dev/null || packages+=(redis-server)
command -v java >/dev/null || packages+=(openjdk-17-jre-headless)
command -v chromium >/dev/null || packages+=(chromium fonts-liberation)
command -v shellcheck >/dev/null || packages+=(shellcheck)
test ${#packages[@]} -eq 0 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # Only the programs are wanted: no server must start by itself.
    for name in prometheus prometheus-alertmanager redis-server; do
        ln -sf /dev/null "/etc/systemd/system/$name.service" 2>/dev/null || true
    done
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    exit 0
fi
echo "${packages[*]} cannot be installed: the tests that need them will be skipped." >&2
