#!/usr/bin/env bash
# make-env.sh NAME: makes the Python environment .venvs/NAME from
# scripts/environments/NAME.txt, for what cannot live beside the rest.
# Penstock itself is in it, from this checkout. Costs nothing when it is up to date.
# A line `# make-env: OPTION...` in the list gives pip further options.
set -eu
cd "$(dirname "$0")/.."
name=${1:?usage: make-env.sh NAME, one of: $(cd scripts/environments && echo *.txt | sed 's/\.txt//g')}
list=scripts/environments/$name.txt
env=.venvs/$name
test -f "$list" || { echo "There is no $list." >&2; exit 2; }
mkdir -p .venvs
exec 9>".venvs/$name.lock"
flock 9 # two test runs may want it at once
# Extras and the tools' settings are nothing to it.
project=$(sed '/^\[project.optional/,/^\[project.scripts/d; /^\[tool/,$d' pyproject.toml)
digest=$(echo "$project" | cat "$list" - | sha256sum | cut -d' ' -f1)
test "$(cat "$env/.ready" 2>/dev/null)" = "$digest" && exit 0
rm -f "$env/.ready"
test -x "$env/bin/python" || "${PYTHON:-python3.11}" -m venv "$env" || python3 -m venv --clear "$env"
read -ra options <<<"$(sed -n 's/^# make-env: //p' "$list")"
# Most modules are never imported, so none is compiled before it is.
pip() { "$env/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "${options[@]}" "$@"; }
grep -v '# needs torch$' "$list" | pip --requirement /dev/stdin
# Builds that ask the environment which torch it has.
late=$(sed -n 's/ *# needs torch$//p' "$list")
test -z "$late" || DS_BUILD_OPS=0 pip --no-build-isolation --no-deps $late
pip --no-deps --editable .
echo "$digest" >"$env/.ready"
