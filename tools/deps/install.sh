#!/usr/bin/env bash
# Gets everything manta is built from and tested with; ./dev deps calls it. Nothing happens, and no network is used, when the
# lists beside this file have not changed since the last run. What does not come from apt lands in the ignored folder .deps/.
#   install.sh            packages, sources, the venv of the product tests
#   install.sh ray        also the venvs of the Ray tests (a GB)
#   install.sh oracle     also the venv of ./dev oracle (torch, transformers; about 5 GB)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
deps="$root/.deps"
python=/usr/bin/python3  # the distribution's, not one of pyenv or conda: the venvs must work for every user of the machine
[ -x "$python" ] || python=python3

say() { echo "deps: $*"; }
die() { echo "deps: $*" >&2; exit 1; }
list() { sed 's/#.*//' "$1" | awk 'NF {print $1}'; }

# A step is done when its stamp holds what it was made from: the digest of its inputs.
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
is_done() { [ -f "$deps/$1.stamp" ] && [ "$(cat "$deps/$1.stamp")" = "$2" ]; }
mark_done() { echo "$2" >"$deps/$1.stamp"; }

install_apt() {
  local missing=() package
  command -v dpkg-query >/dev/null || die "this is not a Debian system: install the packages of tools/deps/apt.txt yourself"
  while read -r package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done < <(list "$here/apt.txt")
  [ ${#missing[@]} -gt 0 ] || return 0

  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "these packages are missing and need root to install: ${missing[*]}"
    as_root=(sudo)
  fi
  # shellcheck source=/dev/null
  (. /etc/os-release && [ "$ID$VERSION_ID" = debian12 ]) || say "Debian 12 is what we test; this system is unverified"
  say "apt-get install ${missing[*]}"
  local log="$deps/apt.log"
  { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "apt-get failed; its whole output is in $log"; }
  changed=1
}

install_venv() {  # NAME LIST: a venv .deps/NAME with exactly the wheels of LIST
  local name=$1 wheels=$2 want
  want=$(digest "$wheels" <("$python" --version))
  ! is_done "$name" "$want" || return 0
  say "Python packages of ${wheels#"$root"/} -> .deps/$name"
  rm -rf "${deps:?}/$name"
  "$python" -m venv "$deps/$name"
  "$deps/$name/bin/python" -m pip install -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r "$wheels" ||
    die "pip could not get the packages of $wheels"
  mark_done "$name" "$want"
  changed=1
}

unpack_debian() {
  local want log="$deps/unpack.log"
  want=$(digest "$here/apt-unpacked.txt")
  ! is_done debian "$want" || return 0
  say "Debian packages, unpacked: $(list "$here/apt-unpacked.txt" | xargs)"
  rm -rf "$deps/debian"
  mkdir -p "$deps/debian/archives"
  # shellcheck disable=SC2046  # one word per package
  (cd "$deps/debian/archives" && apt-get download -qq $(list "$here/apt-unpacked.txt")) >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "apt-get download failed; its whole output is in $log (is the package list empty? apt-get update)"; }
  for archive in "$deps"/debian/archives/*.deb; do dpkg-deb -x "$archive" "$deps/debian"; done
  rm -rf "$deps/debian/archives"
  mark_done debian "$want"
  changed=1
}

fetch_sources() {
  local want
  want=$(digest "$here/pypi.txt" "$here/install.sh")
  ! is_done sources "$want" || return 0
  say "source packages: $(list "$here/pypi.txt" | grep -v '^--' | xargs)"
  local down="$deps/download"
  rm -rf "$down" "$deps/jinja" "$deps/xgrammar"
  mkdir -p "$down" "$deps/jinja" "$deps/xgrammar"
  # pip reads a source package's metadata with its build backend: the pinned one of the venv, not whatever is newest today.
  "$deps/venv/bin/python" -m pip download -q --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: \
    --require-hashes -r "$here/pypi.txt" -d "$down" || die "pip could not get the packages of $here/pypi.txt"
  tar -xzf "$down"/llama_cpp_python-*.tar.gz -C "$deps/jinja" --strip-components=4 --wildcards \
    '*/vendor/llama.cpp/common/jinja/*' '*/vendor/llama.cpp/common/json.*' '*/vendor/llama.cpp/common/unicode.*' \
    '*/vendor/llama.cpp/models/templates/*deepseek*'
  tar -xzf "$down"/llama_cpp_python-*.tar.gz -C "$deps/jinja" --strip-components=3 --wildcards '*/vendor/llama.cpp/LICENSE'
  tar -xzf "$down"/xgrammar-*.tar.gz -C "$deps/xgrammar" --strip-components=1 --exclude='*/3rdparty/googletest' \
    --exclude='*/3rdparty/cpptrace' --exclude='*/tests' --exclude='*/docs' --exclude='*/web'
  rm -rf "$down"
  mark_done sources "$want"
  changed=1
}

fetch_nixl() {
  local want down="$deps/download"
  want=$(digest "$here/nixl.txt")
  ! is_done nixl "$want" || return 0
  say "NIXL -> .deps/nixl"
  rm -rf "$down" "$deps/nixl"
  mkdir -p "$down" "$deps/nixl"
  "$deps/venv/bin/python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 311 \
    --platform manylinux_2_28_x86_64 --require-hashes -r "$here/nixl.txt" -d "$down" ||
    die "pip could not get the package of $here/nixl.txt"
  python3 -m zipfile -e "$down"/nixl_cu13-*.whl "$deps/nixl"
  rm -rf "$down" "$deps/nixl"/nixl_ep_cu13
  mark_done nixl "$want"
  changed=1
}

build_xgrammar() {
  local want log="$deps/xgrammar-build.log"
  want=$(digest "$here/pypi.txt" "$here/xgrammar/CMakeLists.txt" <(c++ --version))
  ! is_done xgrammar-build "$want" || return 0
  say "building xgrammar (once; a minute or two)"
  local launcher=()
  ! command -v ccache >/dev/null || launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  rm -rf "$deps/xgrammar-build"
  { cmake -S "$here/xgrammar" -B "$deps/xgrammar-build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" \
    -DXGRAMMAR_SOURCE="$deps/xgrammar" "${launcher[@]}" && cmake --build "$deps/xgrammar-build"; } >"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; die "xgrammar did not build; the whole output is in $log"; }
  mark_done xgrammar-build "$want"
  changed=1
}

mkdir -p "$deps"
exec 9>"$deps/lock"
flock 9  # two ./dev at once: the second one waits and then finds everything done
changed=0
SECONDS=0
export CCACHE_BASEDIR="$root" CCACHE_NOHASHDIR=1  # another clone of this repository finds its objects in the cache
install_apt
install_venv venv "$here/python-tests.txt"
unpack_debian
fetch_sources
fetch_nixl
build_xgrammar
if [ "${1:-}" = ray ]; then
  for list in "$here"/python-ray-*.txt; do name=${list##*/python-} && install_venv "${name%.txt}" "$list"; done
fi
[ "${1:-}" != oracle ] || install_venv oracle "$here/python-oracle.txt"
[ "$changed" = 0 ] || say "done in $SECONDS s"
