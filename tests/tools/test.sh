#!/usr/bin/env bash
# Runs every test: the Rust tests, the checks' own tests, generated queries against DuckDB, the clients that people have, imports,
# an S3 server, the end-to-end test on a real Kafka, once undisturbed and once killed on the way, and the faults between the program and Kafka.
# Starts brokers of its own and stops them whatever happens. What `make test` calls.
#
# environment: E2E_RECORDS (default 1000000), E2E_KILLS (5), E2E_SEED (7), CARGO_TARGET_DIR
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${BW_CACHE:-$HOME/.cache/bellwether}
export PATH="$HOME/.cargo/bin:$cache/bin:$PATH"
cd "$root" || exit 1

"$here/setup.sh" test || exit 1

work=$(mktemp -d)
export BW_KAFKA_DIR=$work/kafka
clean_up() {
    "$here/kafka.sh" remove || echo "the broker in $BW_KAFKA_DIR could not be stopped" >&2
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

passed=() failed=()

# Runs one step under a name; notes how it ended and how long it took.
step() {
    local name=$1 begun=$SECONDS; shift
    echo "== $name"
    if "$@"; then
        passed+=("$name ($((SECONDS - begun)) s)")
    else
        failed+=("$name ($((SECONDS - begun)) s)")
        return 1
    fi
}

build() { cargo build --locked --bins --tests; }
rust_tests() { cargo test --locked --no-fail-fast; }
golden_views() { "$cache/venv/bin/python" "$here/views_data.py" --check && "$cache/venv/bin/python" "$here/views_oracle.py"; }
oracle_tests() { "$cache/venv/bin/python" "$here/views_oracle_test.py"; }
queries() { "$cache/venv/bin/python" "$here/sql_oracle.py" --binary "$work/bellwether" --seed "${E2E_SEED:-7}"; }
clients() { "$cache/venv/bin/python" "$here/clients.py" --binary "$work/bellwether" --jdbc "$(ls "$cache"/postgresql-*.jar)"; }
imports() { "$cache/venv/bin/python" "$here/imports.py" --binary "$work/bellwether" --seed "${E2E_SEED:-7}"; }
bucket() { "$cache/venv/bin/python" "$here/s3.py" --binary "$work/bellwether"; }
checks_tests() { "$cache/venv/bin/python" "$here/checks_test.py"; }
# Both runs make the very same records, and compare the ids of what was said about them.
e2e() {
    "$cache/venv/bin/python" "$here/e2e.py" --binary "$work/bellwether" --seed "${E2E_SEED:-7}" --now "$now" \
        --records "${E2E_RECORDS:-1000000}" --effects "$work/effects.json" "$@"
}

# On brokers of their own, which they stop and kill.
faults() { "$cache/venv/bin/python" "$here/faults.py" --binary "$work/bellwether" --seed "${E2E_SEED:-7}"; }

step "start Kafka" "$here/kafka.sh" start && eval "$("$here/kafka.sh" env)"
if step "build" build; then
    # A copy, so that a build in the same folder meanwhile does not change the program under test.
    cp "${CARGO_TARGET_DIR:-target}/debug/bellwether" "$work/bellwether"
    step "Rust tests" rust_tests
    step "golden views by DuckDB" golden_views
    step "tests of the oracle" oracle_tests
    step "tests of the checks" checks_tests
    step "queries by DuckDB" queries
    step "clients" clients
    step "imports" imports
    step "a bucket, several writers" bucket
    if [[ -n ${BW_KAFKA:-} ]]; then
        now=$(date +%s)
        step "end to end" e2e --prefix e2e
        step "end to end, ${E2E_KILLS:-5} times killed" e2e --prefix e2e-kill --kills "${E2E_KILLS:-5}"
    fi
    step "Kafka faults" faults
fi

echo
for name in "${passed[@]}"; do echo "passed  $name"; done
for name in "${failed[@]}"; do echo "FAILED  $name"; done
echo "make test: ${#passed[@]} steps passed, ${#failed[@]} failed, in $((SECONDS / 60)) min $((SECONDS % 60)) s"
((${#failed[@]} == 0))
