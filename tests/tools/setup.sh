#!/usr/bin/env bash
# Makes a Debian or Ubuntu machine ready for `make demo` (level `build`) or `make test` (level `test`).
#
# Quick and silent when all is there. Installs with apt when it may (as root, or with sudo that asks nothing), and
# otherwise prints the exact line to type. Nothing but apt and the cache folder is touched; no service is started.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: setup.sh build|check|test [--rust]
  build   what compiling and running Bellwether needs: Rust, a C and C++ compiler, make, OpenSSL and zlib headers
  check   that, and cargo's fmt and clippy
  test    what `build` needs, and the real clients of the tests: a Java runtime and Maven (for Kafka), kcat, psql, openssl,
          promtool and Prometheus, pgjdbc, a Python environment with duckdb, deltalake, polars, confluent-kafka, psycopg, adbc, moto
  --rust  also install Rust by rustup where there is none (for machines nobody sits at)
environment: BW_CACHE   where downloads stay (default ~/.cache/bellwether)
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${BW_CACHE:-$HOME/.cache/bellwether}
export PATH="$HOME/.cargo/bin:$cache/bin:$PATH"
updated=no

say() { echo "setup: $*" >&2; }
die() { echo "setup: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Prints what must stand before apt-get for it to work unasked; fails where nothing would do.
privilege() {
    if (($(id -u) == 0)); then return; fi
    have sudo && sudo -n true 2>/dev/null && echo "sudo -n"
}

apt_install() {
    local line="sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
    have apt-get || die "expected these packages, by their Debian names: $*; this machine has no apt-get, install them with yours"
    local prefix; prefix=$(privilege) || die "these packages are missing, and installing them needs root; type:
    $line"
    say "installing with apt: $*"
    if [[ $updated == no ]]; then
        $prefix apt-get update -qq || die "apt-get update failed; mend it, then type: $line"
        updated=yes
    fi
    local log; log=$(mktemp)
    $prefix env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        die "apt could not install them; once its complaint is mended, type: $line"
    }
    rm -f "$log"
}

# Whether a C program that includes a header and links a library builds: the header's package is there, and it fits.
links() {
    local header=$1 library=$2 out
    out=$(mktemp)
    printf '#include <%s>\nint main(void) { return 0; }\n' "$header" | cc -x c - -o "$out" "-l$library" 2>/dev/null
    local code=$?
    rm -f "$out"
    return $code
}

build_packages() {
    local missing=()
    have cc || missing+=(gcc libc6-dev)
    have c++ || missing+=(g++)
    have make || missing+=(make)
    have git || missing+=(git)
    have pkg-config || missing+=(pkg-config)
    have curl || missing+=(curl)
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
    # librdkafka speaks TLS and gzip through the system's libraries: building our own OpenSSL takes minutes.
    if ! have cc || ! links openssl/ssl.h ssl; then missing+=(libssl-dev); fi
    if ! have cc || ! links zlib.h z; then missing+=(zlib1g-dev); fi
    ((${#missing[@]} == 0)) || apt_install "${missing[@]}"
}

# Whether version $1 is at least version $2.
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

rust() {
    local want found
    want=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml")
    local install="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal"
    if ! have cargo && ! have rustup; then
        [[ $1 == yes ]] || die "expected Rust $want or later, found none; type:
    $install"
        say "installing Rust by rustup"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal >&2
    fi
    # rustup without any toolchain answers every call with an error: give it one.
    if have rustup && ! rustup show active-toolchain >/dev/null 2>&1; then
        say "installing the stable Rust toolchain by rustup"
        rustup toolchain install stable --profile minimal >&2
        rustup default stable >&2
    fi
    found=$(cd "$root" && rustc --version | cut -d' ' -f2)
    at_least "${found%%-*}" "$want" || die "expected Rust $want or later, found $found; type:
    rustup update stable && rustup default stable"
}

# A toolchain of rustup's minimal profile can neither format nor lint.
rust_components() {
    local missing=()
    cargo fmt --version >/dev/null 2>&1 || missing+=(rustfmt)
    cargo clippy --version >/dev/null 2>&1 || missing+=(clippy)
    ((${#missing[@]} == 0)) && return
    have rustup || die "expected cargo's ${missing[*]}, found none, and no rustup to add them"
    rustup component add "${missing[@]}" >&2
}

java_major() { java -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p'; }

test_packages() {
    local missing=() major=0
    if have java; then major=$(java_major); fi
    ((${major:-0} >= 17)) || missing+=(default-jre-headless)
    have mvn || missing+=(maven)
    have kcat || missing+=(kcat)
    have psql || missing+=(postgresql-client)
    have openssl || missing+=(openssl)
    # The venv module may be there without the wheel of pip it unpacks.
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    ((${#missing[@]} == 0)) || apt_install "${missing[@]}"
}

# Debian's package of Prometheus would start a service at once and at every boot; its programs alone are wanted.
prometheus() {
    if have promtool && have prometheus; then return; fi
    have apt-get && have dpkg-deb || die "expected promtool and prometheus on PATH; install Prometheus 2.40 or later"
    say "unpacking Debian's prometheus into $cache/bin"
    local into prefix; into=$(mktemp -d)
    chmod 755 "$into"
    if [[ $updated == no ]] && prefix=$(privilege); then
        $prefix apt-get update -qq && updated=yes
    fi
    (cd "$into" && apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg-deb -x prometheus_*.deb unpacked) || {
        rm -rf "$into"
        die "could not download the package prometheus; type: sudo apt-get update"
    }
    mkdir -p "$cache/bin"
    install -m 755 "$into/unpacked/usr/bin/promtool" "$into/unpacked/usr/bin/prometheus" "$cache/bin/"
    rm -rf "$into"
}

# The driver of Postgres for Java, from Maven Central.
jdbc() {
    local version=42.7.8
    [[ -e $cache/postgresql-$version.jar ]] && return
    say "fetching pgjdbc $version into $cache"
    mkdir -p "$cache"
    mvn -B -q -ntp dependency:copy -Dartifact="org.postgresql:postgresql:$version" -DoutputDirectory="$cache" >&2 ||
        die "Maven could not fetch pgjdbc"
}

# The environment is named after what it holds, so that a changed requirements.txt makes a new one.
python_venv() {
    local venv
    venv=$cache/venv-$(sha256sum <"$here/requirements.txt" | cut -c1-12)
    if [[ ! -e $venv/.complete ]]; then
        say "making a Python environment in $venv"
        rm -rf "$venv"
        mkdir -p "$cache"
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt" >&2 ||
            die "pip could not install tests/tools/requirements.txt"
        touch "$venv/.complete"
    fi
    ln -sfn "$venv" "$cache/venv"
}

main() {
    local level=${1:-} with_rust=no
    shift || true
    for option in "$@"; do
        case $option in
            --rust) with_rust=yes ;;
            *) usage >&2; exit 2 ;;
        esac
    done
    case $level in
        build) build_packages; rust "$with_rust" ;;
        check) build_packages; rust "$with_rust"; rust_components ;;
        test)
            build_packages
            rust "$with_rust"
            test_packages
            prometheus
            jdbc
            python_venv
            "$here/kafka.sh" fetch
            ;;
        help | -h | --help) usage ;;
        *) usage >&2; exit 2 ;;
    esac
}

main "$@"
