#!/usr/bin/env bash
# The long tests, for a night: seed after seed, the simulation of the whole core, the end-to-end test killed many times, and
# every fault between the program and Kafka; the first round has the outages of minutes too. Goes on after a failure, and ends with the commands that
# repeat those there were. What `make soak` calls.
#
# environment: SOAK_MINUTES (default 480), SOAK_SEED of the first round (default: by the clock), SOAK_RECORDS (300000),
# SOAK_KILLS (20), SOAK_SIMULATIONS (5000), CARGO_TARGET_DIR
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${BW_CACHE:-$HOME/.cache/bellwether}
python=$cache/venv/bin/python
export PATH="$HOME/.cargo/bin:$cache/bin:$PATH"
cd "$root" || exit 1

"$here/setup.sh" test || exit 1
cargo build --locked --bins || exit 1

work=$(mktemp -d)
export BW_KAFKA_DIR=$work/kafka
clean_up() {
    "$here/kafka.sh" remove || echo "the broker in $BW_KAFKA_DIR could not be stopped" >&2
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
# A copy, so that a build in the same folder meanwhile does not change the program under test.
cp "${CARGO_TARGET_DIR:-target}/debug/bellwether" "$work/bellwether"

seed=${SOAK_SEED:-$(($(date +%s) % 100000))}
deadline=$((SECONDS + ${SOAK_MINUTES:-480} * 60))
ran=0 failed=()

# Runs one test of this round; a failure is noted with what repeats it.
try() {
    echo "== $*"
    ran=$((ran + 1))
    "$python" "$here/$1" --binary "$work/bellwether" "${@:2}" || failed+=("$*")
}

# Worlds no round had before; a failure prints the line that repeats it.
simulate() {
    local worlds=${SOAK_SIMULATIONS:-5000}
    echo "== $worlds simulations from seed $((seed * worlds))"
    ran=$((ran + 1))
    BELLWETHER_SIM_FIRST=$((seed * worlds)) BELLWETHER_SIM_SEEDS=$worlds cargo test --locked --lib -- run::tests:: run::instances::tests:: ||
        failed+=("simulations from seed $((seed * worlds))")
}

# A broker for each round: what a round leaves behind is no part of the next.
round() {
    local now; now=$(date +%s)
    simulate
    local records=(--records "${SOAK_RECORDS:-300000}" --seed "$seed" --now "$now" --effects "$work/effects-$seed.json")
    "$here/kafka.sh" start && eval "$("$here/kafka.sh" env)" || return
    try e2e.py "${records[@]}" --prefix "soak-$seed"
    try e2e.py "${records[@]}" --prefix "soak-$seed-kill" --kills "${SOAK_KILLS:-20}" --strangers 5
    "$here/kafka.sh" remove
    try faults.py --seed "$seed" "$@"
}

round --long
while ((SECONDS < deadline)); do
    seed=$((seed + 1))
    round
done

echo
for name in "${failed[@]}"; do echo "FAILED  $name"; done
echo "soak: $((ran - ${#failed[@]})) of $ran passed, seeds up to $seed, in $((SECONDS / 60)) min"
((${#failed[@]} == 0))
