# shellcheck shell=bash
# What the scripts share: where state lives, how they speak, how they become root, and which processes are theirs.
# Sourced, never run. Everything a person reads goes to stderr; stdout is for what another program reads.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where everything the scripts start or build keeps its files: TELECINE_STATE, else .telecine/state in the checkout.
state=${TELECINE_STATE:-$root/.telecine/state}
mkdir -p "$state"
state=$(cd "$state" && pwd)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root. Says so the first time when that takes sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
        return
    fi
    have sudo || die "this needs root and there is no sudo; run as root: $*"
    say "as root: sudo $*"
    sudo "$@"
}

# The same with what sudo would drop: PATH, HOME and every setting of ours, of Cargo's and of Docker's.
as_root_keeping() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
        return
    fi
    local kept=() name
    for name in $(compgen -e); do
        case $name in PATH | HOME | LD_LIBRARY_PATH | DOCKER_HOST | TELECINE_* | CARGO* | RUST*) kept+=("$name=${!name}") ;; esac
    done
    have sudo || die "this needs root and there is no sudo; run as root: $*"
    sudo env "${kept[@]}" "$@"
}

# become_root WHY SCRIPT ARGUMENT…: for another user than root, the script begins again by sudo, and says why.
become_root() {
    local why=$1
    shift
    [ "$(id -u)" != 0 ] || return 0
    say "as root, by sudo, because $why: $*"
    as_root_keeping "$@"
    exit
}

# Holds a lock of this name until the script ends, so that two runs at once do the work one after the other.
# Children must be started with `9>&-`, or they would hold it for their whole life.
lock() {
    exec 9>"$state/$1.lock"
    flock -n 9 || { say "waiting for another ${1} run to end"; flock 9; }
}

# When the process began, in clock ticks since boot: with the pid it names a process for ever.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# remember NAME PID: notes a process we started. ours NAME: prints its pid while it lives. forget NAME.
remember() { printf '%s %s\n' "$2" "$(start_time "$2")" >"$state/$1.process"; }
ours() {
    local pid began
    [ -f "$state/$1.process" ] || return 1
    read -r pid began <"$state/$1.process" || return 1
    [ -n "$began" ] && [ "$(start_time "$pid")" = "$began" ] || return 1
    printf '%s\n' "$pid"
}
forget() { rm -f "$state/$1.process"; }

# end NAME SECONDS: ends the process noted under this name, and no other: SIGTERM, then SIGKILL after a while.
end() {
    local pid waited=0
    if ! pid=$(ours "$1"); then
        forget "$1"
        say "$1: none of ours is running"
        return
    fi
    signal TERM "$pid"
    while ours "$1" >/dev/null; do
        [ "$waited" -lt $(($2 * 5)) ] || { say "$1 (pid $pid) ignores SIGTERM: killing it"; signal KILL "$pid"; sleep 1; break; }
        sleep 0.2
        waited=$((waited + 1))
    done
    forget "$1"
    say "$1 (pid $pid) ended"
}
signal() { if [ -O "/proc/$2" ]; then kill "-$1" "$2"; else as_root kill "-$1" "$2"; fi; }

# until_answers SECONDS PID COMMAND…: waits until the command succeeds; fails early when the process is gone.
until_answers() {
    local tries=$(($1 * 5)) pid=$2
    shift 2
    while [ "$tries" -gt 0 ]; do
        "$@" >/dev/null 2>&1 && return 0
        [ -d "/proc/$pid" ] || return 1
        sleep 0.2
        tries=$((tries - 1))
    done
    return 1
}

# put NAME VALUE: sets one line of $state/images.env, which the tests' environment is read from.
put() {
    local file=$state/images.env
    touch "$file"
    { grep -v "^$1=" "$file" || true; printf '%s=%s\n' "$1" "$2"; } >"$file.new"
    mv "$file.new" "$file"
}
