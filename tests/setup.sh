#!/usr/bin/env bash
# Check for the Debian packages that the tests need; in CI (CI=true), install them.
set -euo pipefail

# Command and the Debian package that provides it.
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
    echo "tests/setup.sh: missing packages: ${packages[*]}. Tests marked slurm need slurm-wlm and" \
        "munge, those marked browser need chromium, and compiled kernels need g++; tests whose" \
        "packages are missing are deselected here and run in CI."
    exit 0
fi

sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
if ! command -v apt-get >/dev/null; then
    echo "tests/setup.sh: apt-get not found; install ${packages[*]} by other means" >&2
    exit 1
fi
# The packages start no services: the tests start their own Slurm.
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" apt-get install -qq -y --no-install-recommends "${packages[@]}"
