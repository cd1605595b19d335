#!/usr/bin/env bash
# What tests need beside Python packages. In CI (CI=true) it is installed, elsewhere only looked for.
set -euo pipefail

# Command to look for, and the Debian package that has it.
needed=(slurmctld:slurm-wlm slurmd:slurm-wlm munged:munge chromium:chromium g++:g++ fc-list:fontconfig git:git)
PATH=$PATH:/usr/sbin:/sbin

packages=()
for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
if ! command -v fc-list >/dev/null || [ -z "$(fc-list 2>/dev/null | head -1)" ]; then
    packages+=(fonts-dejavu-core)
fi
[ ${#packages[@]} -eq 0 ] && exit 0
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)

if [ "${CI:-}" != true ]; then
    echo "tests/setup.sh: not here: ${packages[*]}. Tests marked slurm are left out without" \
        "slurm-wlm and munge, those marked browser without chromium, those of compiled kernels" \
        "without g++; CI runs them all."
    exit 0
fi

sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
if ! command -v apt-get >/dev/null; then
    echo "tests/setup.sh: no apt-get here; install what has: ${packages[*]}" >&2
    exit 1
fi
# No service is started by a package: the tests start a Slurm of their own.
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" apt-get install -qq -y --no-install-recommends "${packages[@]}"
