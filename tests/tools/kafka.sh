#!/usr/bin/env bash
# Runs one real Apache Kafka broker (KRaft, broker and controller in one process) for tests, on loopback only.
#
# The broker's jars come from Maven Central once and stay in the cache. Every instance lives in a folder of its own
# (--dir, or $BW_KAFKA_DIR), so that a developer's broker and a test's do not meet. Variables of ours begin with BW_:
# those that begin with BELLWETHER_ are keys of the program's configuration.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: kafka.sh COMMAND [--dir DIR] [--set KEY=VALUE]... [--proxied PORT]
  fetch     download the broker into the cache, if it is not there
  start     format and start a broker on free ports; wait until it is ready; print its bootstrap servers
  restart   start the broker of DIR again, on the same ports and data
  stop      stop it cleanly (SIGTERM, then SIGKILL after a deadline); its data stays until `remove`
  remove    stop it and delete DIR
  kill      SIGKILL it          pause / resume   SIGSTOP / SIGCONT it
  status    say whether it runs; exit 0 if it does, 3 if not
  env       print lines for `eval`: BW_KAFKA, BW_KAFKA_DIR, BW_KAFKA_PID, and BW_KAFKA_PROXIED where there is one
--set puts a line into server.properties (start only), e.g. --set num.partitions=3
--proxied gives the broker a second listener, BW_KAFKA_PROXIED, that tells its clients to come to PORT on loopback (start
only): a proxy on that port sees all that they say
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BW_CACHE:-$HOME/.cache/bellwether}
dir=${BW_KAFKA_DIR:-${TMPDIR:-/tmp}/bellwether-kafka-$(id -u)}
ready_secs_max=${BW_KAFKA_READY_SECS:-120}
stop_secs_max=30
heap=${BW_KAFKA_HEAP:-1g}
settings=()
proxied=

die() { echo "kafka.sh: $*" >&2; exit 1; }

# Calls a condition every 0.1 s until it holds or the deadline (seconds, first argument) is over.
wait_until() {
    local deadline=$((SECONDS + $1)); shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# The folder of jars, named after what the pom says, so that a new version is a new folder.
jars() { echo "$cache/kafka-$(sha256sum <"$here/kafka/pom.xml" | cut -c1-12)"; }

fetch() {
    local into; into=$(jars)
    [[ -e $into/.complete ]] && return
    command -v mvn >/dev/null || die "expected Maven (mvn) on PATH, found none; type: sudo apt-get install -y maven"
    echo "kafka.sh: fetching Apache Kafka from Maven Central into $into" >&2
    mkdir -p "$cache"
    local part; part=$(mktemp -d -p "$cache")
    mvn -B -q -ntp -f "$here/kafka/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$part" >&2 || { rm -rf "$part"; die "Maven could not fetch the jars"; }
    touch "$part/.complete"
    # Two may fetch at once: the first to rename wins, the other's copy is the same and goes.
    mv -T "$part" "$into" 2>/dev/null || rm -rf "$part"
}

java_home_check() {
    command -v java >/dev/null || die "expected a JDK 17 or later (java), found none; type: sudo apt-get install -y default-jre-headless"
    local major; major=$(java -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p')
    ((${major:-0} >= 17)) || die "expected Java 17 or later, found ${major:-none}"
}

# Prints a port that nobody listens on, below the range the kernel gives to outgoing connections.
free_port() {
    local port
    for _ in {1..200}; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    die "expected a free port in 20000..32000, found none in 200 tries"
}

pid() { [[ -r $dir/pid ]] && cat "$dir/pid"; }

# The folder's name stands in the command line, so a recycled process id is not taken for the broker.
alive() {
    local p; p=$(pid) || return 1
    [[ -r /proc/$p/cmdline ]] && tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -qF "$dir/server.properties"
}

bootstrap() { sed -n 's/^advertised.listeners=PLAINTEXT:\/\/\([^,]*\).*/\1/p' "$dir/server.properties"; }
behind_proxy() { sed -n 's/^listeners=.*PROXIED:\/\/\([^,]*\).*/\1/p' "$dir/server.properties"; }

write_properties() {
    local broker controller
    broker=$(free_port)
    while controller=$(free_port); [[ $controller == "$broker" ]]; do :; done
    cat >"$dir/server.properties" <<TEXT
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$broker,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$broker
controller.listener.names=CONTROLLER
log.dirs=$dir/data
# One node holds every replica.
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Small internal topics: a first consumer or transaction need not wait for 50 partitions each.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
num.partitions=6
# A topic nobody made on purpose is a mistake in a test: it would have the wrong number of partitions.
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
# Members that were killed by a test shall not be waited for.
group.min.session.timeout.ms=1000
log.retention.hours=24
TEXT
    [[ -z $proxied ]] || write_proxied_listener "$broker" "$controller"
    ((${#settings[@]} == 0)) || printf '%s\n' "${settings[@]}" >>"$dir/server.properties"
}

# Puts a listener in place whose clients are told to come to the proxy's port.
write_proxied_listener() {
    local broker=$1 controller=$2 inner
    while inner=$(free_port); [[ $inner == "$broker" || $inner == "$controller" ]]; do :; done
    sed -i '/^listeners=/d; /^advertised.listeners=/d' "$dir/server.properties"
    cat >>"$dir/server.properties" <<TEXT
listeners=PLAINTEXT://127.0.0.1:$broker,PROXIED://127.0.0.1:$inner,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$broker,PROXIED://127.0.0.1:$proxied
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
TEXT
}

java_run() {
    java "-Xmx$heap" "-Xms256m" -XX:+UseG1GC -Djava.awt.headless=true \
        "-Dlog4j2.configurationFile=$here/kafka/log4j2.properties" -cp "$(jars)/*" "$@"
}

launch() {
    : >"$dir/server.log"
    # In a session of its own, so that Ctrl-C in a terminal reaches the test and not the broker before it.
    setsid java "-Xmx$heap" "-Xms256m" -XX:+UseG1GC -Djava.awt.headless=true \
        "-Dlog4j2.configurationFile=$here/kafka/log4j2.properties" -cp "$(jars)/*" \
        kafka.Kafka "$dir/server.properties" >>"$dir/server.log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    # Until the child has become `java`, its command line is this script's.
    wait_until 5 alive || true
}

started() { grep -q 'Kafka Server started' "$dir/server.log"; }
started_or_dead() { started || ! alive; }
connects() { local to; to=$(bootstrap); (exec 3<>"/dev/tcp/${to%:*}/${to##*:}") 2>/dev/null; }

await_ready() {
    wait_until "$ready_secs_max" started_or_dead && started && wait_until 10 connects
}

# Deletes the instance's folder, and never one that holds anything else.
clear_dir() {
    [[ ! -e $dir || -e $dir/server.properties ]] || rmdir "$dir" 2>/dev/null ||
        die "expected $dir to be a broker's folder or empty; it is neither, so it is left alone"
    rm -rf "$dir"
}

report_failure() {
    tail -n 20 "$dir/server.log" >&2 || true
    stop || true
    die "the broker was not ready within $ready_secs_max s; its log is $dir/server.log"
}

start() {
    alive && die "a broker already runs in $dir (pid $(pid)); stop it, or give another --dir"
    java_home_check
    fetch
    for try in 1 2 3; do
        clear_dir
        mkdir -p "$dir/data"
        write_properties
        java_run kafka.tools.StorageTool format --standalone --cluster-id "$(cluster_id)" \
            --config "$dir/server.properties" >"$dir/format.log" 2>&1 || { cat "$dir/format.log" >&2; die "could not format $dir/data"; }
        launch
        await_ready && { bootstrap; return; }
        # Somebody took the port between our look and the broker's bind: look again.
        grep -q 'Address already in use' "$dir/server.log" && ((try < 3)) || break
    done
    report_failure
}

# A cluster id is 16 random bytes in base64, and must not begin like an option.
cluster_id() { head -c 16 /dev/urandom | base64 | tr '+/' 'pq' | tr -d '='; }

restart() {
    alive && die "the broker in $dir already runs (pid $(pid))"
    [[ -r $dir/server.properties ]] || die "expected an instance in $dir, found none; use: kafka.sh start --dir $dir"
    launch
    await_ready || report_failure
    bootstrap
}

dead() { ! alive; }

stop() {
    alive || return 0
    local p; p=$(pid)
    kill -CONT "$p" 2>/dev/null || true
    kill -TERM "$p" 2>/dev/null || true
    wait_until "$stop_secs_max" dead && return
    echo "kafka.sh: the broker did not stop within $stop_secs_max s; killing it" >&2
    kill -KILL "$p" 2>/dev/null || true
    wait_until 10 dead || die "process $p does not go away"
}

signal() {
    alive || die "no broker runs in $dir"
    kill "-$1" "$(pid)"
}

status() {
    alive || { echo "no broker runs in $dir"; return 3; }
    echo "Kafka runs at $(bootstrap) (pid $(pid), folder $dir)"
}

print_env() {
    alive || die "no broker runs in $dir"
    printf 'export BW_KAFKA=%q\nexport BW_KAFKA_DIR=%q\nexport BW_KAFKA_PID=%q\n' \
        "$(bootstrap)" "$dir" "$(pid)"
    local behind; behind=$(behind_proxy)
    [[ -z $behind ]] || printf 'export BW_KAFKA_PROXIED=%q\n' "$behind"
}

main() {
    local command=${1:-}
    shift || true
    while (($# > 0)); do
        case $1 in
            --dir) dir=${2:?--dir needs a folder}; shift 2 ;;
            --set) settings+=("${2:?--set needs KEY=VALUE}"); shift 2 ;;
            --proxied) proxied=${2:?--proxied needs a port}; shift 2 ;;
            *) usage >&2; exit 2 ;;
        esac
    done
    dir=$(realpath -m "$dir")
    case $command in
        fetch) java_home_check; fetch ;;
        start) start ;;
        restart) restart ;;
        stop) stop ;;
        remove) stop; clear_dir ;;
        kill) signal KILL; wait_until 10 dead || die "process $(pid) does not go away" ;;
        pause) signal STOP ;;
        resume) signal CONT ;;
        status) status ;;
        env) print_env ;;
        help | -h | --help) usage ;;
        *) usage >&2; exit 2 ;;
    esac
}

main "$@"
