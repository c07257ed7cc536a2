# shellcheck shell=bash
# Shared by scripts/test and scripts/quickstart: finds a Python, installs what the machine lacks, makes the virtual
# environment. To be sourced by bash under `set -euo pipefail`; functions talk on standard error and end the script
# with a one-line message when something cannot be had.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$checkout/.venv
readonly checkout venv

# Administrators' programs (mkfs, losetup, blkid) are not on the path of every user.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

# Runs a command as root, through sudo if need be.
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root for '$*', and there is no sudo: run that as root, then try again"
    fi
}

# Runs a command without its output, which is shown only when the command fails.
quietly() {
    local output
    output=$("$@" 2>&1 </dev/null) && return
    say "$output"
    die "failed: $*"
}

# Runs apt-get. DEBIAN_FRONTEND is set behind sudo, which clears the environment.
apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"
}

# Installs Debian packages. The package lists are fetched first: those of a fresh machine are empty or old.
install_packages() {
    command -v apt-get >/dev/null || die "please install (there is no apt-get here): $*"
    say "installing: $*"
    quietly apt update
    quietly apt install --no-install-recommends -y "$@"
}

# Sets `python` to the first Python 3.11 or newer; PYTHON in the environment is tried first.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.{14..11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            # A version manager's shim stands for one interpreter: name that one.
            python=$("$candidate" -c 'import sys; print(sys.executable)')
            return
        fi
    done
    die "needs Python 3.11 or newer, and found none (set PYTHON to its path)"
}

# Prints the Debian package that a Python of the distribution lacks: suffix `venv` or `dev`.
python_package() {
    "$python" -c 'import sys; print("python%d.%d-%s" % (*sys.version_info[:2], sys.argv[1]))' "$1"
}

has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }

has_headers() {
    [[ -e $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)/Python.h ]]
}

is_of_distribution() { [[ $("$python" -c 'import sys; print(sys.base_prefix)') == /usr ]]; }

# Installs what is missing of: all that building and mounting needs, and the given `command=package` pairs.
install_missing() {
    local pair packages=()
    find_python
    for pair in fusermount3=fuse3 pkg-config=pkg-config gcc=gcc mountpoint=util-linux "$@"; do
        command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    # pyfuse3 is compiled on this machine: its package index holds sources only.
    pkg-config --exists fuse3 2>/dev/null || packages+=(libfuse3-dev)
    printf '#include <stdio.h>\n' | gcc -E - >/dev/null 2>&1 || packages+=(libc6-dev)
    if is_of_distribution; then
        has_venv || packages+=("$(python_package venv)")
        has_headers || packages+=("$(python_package dev)")
    else
        has_venv || die "$python has no module venv or ensurepip: install it with them, or set PYTHON to another one"
        has_headers || die "$python has no C headers (Python.h): install it with them, or set PYTHON to another one"
    fi
    ((${#packages[@]} == 0)) || install_packages "${packages[@]}"
}

# Installs the package of a `command=package` pair where the command is missing and the distribution has the package.
install_if_there() {
    local package=${1#*=}
    command -v "${1%%=*}" >/dev/null && return
    # The lists of a fresh machine may be empty, so what is not in them is asked for once more.
    if command -v apt-get >/dev/null && { apt install --simulate "$package" || { apt update &&
        apt install --simulate "$package"; }; } >/dev/null 2>&1; then
        install_packages "$package"
    else
        say "going on without $package, which cannot be had here"
    fi
}

# Makes the virtual environment, and installs the checkout into it, editable. The argument names the extras: `[test]`,
# or is empty. Does nothing where that was done for this Python and today's pyproject.toml.
install_cowfs() {
    local extras=$1 stamp
    stamp=$(cat "$checkout/pyproject.toml" <(printf '%s\n' "$checkout" "$python") | cksum)
    has_line "$venv/installed$extras" "$stamp" && "$venv/bin/python" -c '' 2>/dev/null && return
    if ! has_line "$venv/made-for" "$checkout $python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making a virtual environment: $venv"
        quietly "$python" -m venv --clear "$venv"
        printf '%s\n' "$checkout $python" >"$venv/made-for"
    fi
    say "installing cowfs$extras into it (pyfuse3 is compiled: this can take a minute)"
    quietly "$venv/bin/python" -m pip install --quiet --editable "$checkout$extras"
    printf '%s\n' "$stamp" >"$venv/installed$extras"
}

# Makes a virtual environment of its own, and installs a wheel of the checkout into it whose inner modules are compiled.
# The argument names the extras. Does nothing where that was done for this Python and the sources as they are.
install_compiled() {
    local extras=$1 there=$checkout/.venv-compiled stamp
    stamp=$(cd "$checkout" && cat pyproject.toml setup.py scripts/backend.py <(printf '%s\n' "$extras" "$python") \
        <(find cowfs mkcowfs -name '*.py' | LC_ALL=C sort | xargs cat) | cksum)
    has_line "$there/installed" "$stamp" && "$there/bin/python" -c '' 2>/dev/null && return
    say "compiling cowfs and installing it into a virtual environment: $there (this takes some minutes)"
    "$there/bin/python" -m pip --version >/dev/null 2>&1 || quietly "$python" -m venv --clear "$there"
    rm -rf "$there/installed" "$there/wheels"
    quietly env COWFS_COMPILE=1 "$there/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$there/wheels" "$checkout"
    quietly "$there/bin/python" -m pip install --quiet "$(echo "$there"/wheels/cowfs-*.whl)$extras"
    # Of the same version as the one before, which pip would leave as it is.
    quietly "$there/bin/python" -m pip install --quiet --no-deps --force-reinstall "$there"/wheels/cowfs-*.whl
    printf '%s\n' "$stamp" >"$there/installed"
}

# Whether the file $1 exists and holds the line $2.
has_line() { [[ -e $1 && $(<"$1") == "$2" ]]; }

# Ends the script unless this user can mount FUSE filesystems.
need_fuse() {
    [[ -c /dev/fuse ]] || die "there is no /dev/fuse: load the module (modprobe fuse);" \
        "a container needs it passed on (--device /dev/fuse --cap-add SYS_ADMIN)"
    [[ -r /dev/fuse && -w /dev/fuse ]] || die "this user may not open /dev/fuse: as root, chmod a+rw /dev/fuse"
}
