# shellcheck shell=sh
# The set-up that all scripts share: makes .venv, installs lbhost there, is quick the second time.
#
# Source it with `root` set to the repository's folder, then call `use_venv EXTRA...`. It sets
# `venv`. What takes long is told on stderr, what goes wrong in one line there, followed by the
# end of the log only when lbhost cannot know the cause.
#
# LBHOST_PYTHON    the Python to use (default: python3, else the newest python3.N there is)
# LBHOST_INSTALLER uv or pip (default: uv when it is there)

venv=${root:?is set by the script that sources this}/.venv
setup_log=$venv/setup.log
setup_stamp=$venv/.lbhost-setup
oldest_minor=11

say() { printf 'lbhost: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# --- quick path: nothing has changed since the last set-up ---------------------------------

# What the environment was made from. The interpreter is named by its real path, which holds its
# minor version, so that a system upgrade under .venv is noticed without starting Python.
setup_key() {
    set -- "$(cksum <"$root/pyproject.toml")" "$(readlink -f "$venv/bin/python" || :)"
    printf '%s %s %s\n' "$root" "${1%% *}" "$2"
}

# Reads the stamp into `stamped_key` and `stamped_extras`; empty when there is none.
read_stamp() {
    stamped_key='' stamped_extras=''
    [ -f "$setup_stamp" ] || return 0
    { IFS= read -r stamped_key && IFS= read -r stamped_extras; } <"$setup_stamp" || :
}

is_set_up() { # EXTRA...
    [ -x "$venv/bin/python" ] || return 1
    read_stamp
    [ "$stamped_key" = "$(setup_key)" ] || return 1
    for extra in "$@"; do
        case " $stamped_extras " in
        *" $extra "*) ;;
        *) return 1 ;;
        esac
    done
}

use_venv() { # EXTRA...
    is_set_up "$@" && return 0
    [ ! -L "$venv" ] || die "$venv is a link to $(readlink "$venv"), whose environment a set-up" \
        "would replace: remove the link (rm $venv), and run this again"
    # One set-up at a time: two at once would write into each other's environment.
    exec 9<"$root/pyproject.toml"
    if ! flock -n 9; then
        say "waiting for another set-up in $root to finish"
        flock 9
    fi
    is_set_up "$@" || set_up "$@"
    exec 9<&-
}

# --- what must be there ---------------------------------------------------------------------

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

is_new_enough() { # MAJOR.MINOR
    [ "${1%%.*}" -eq 3 ] && [ "${1#*.}" -ge "$oldest_minor" ]
}

# Sets `python`.
find_python() {
    found=''
    for python in ${LBHOST_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        version=$(python_version "$python") || continue
        is_new_enough "$version" && return 0
        found=${found:-"$python is $version"}
    done
    [ -n "$found" ] || die "no python3: lbhost needs Python 3.$oldest_minor or newer"
    die "Python too old: $found, lbhost needs 3.$oldest_minor or newer (LBHOST_PYTHON names another)"
}

has_compiler() {
    for compiler in "${CXX:-c++}" g++ clang++; do
        command -v "${compiler%% *}" >/dev/null 2>&1 && return 0
    done
    return 1
}

# Whether llama-cpp-python is installed, or the installer has kept a wheel that it built earlier.
has_llama_cpp() {
    caches=${XDG_CACHE_HOME:-$HOME/.cache}
    set -- "$venv"/lib/python3.*/site-packages/llama_cpp_python-*.dist-info
    case $installer in
    uv) set -- "$@" "${UV_CACHE_DIR:-$caches/uv}"/sdists-v*/*/llama-cpp-python/*/*/llama_cpp_python-*.whl ;;
    *) set -- "$@" "${PIP_CACHE_DIR:-$caches/pip}"/wheels/*/*/*/*/llama_cpp_python-*.whl ;;
    esac
    for path; do
        [ ! -e "$path" ] || return 0
    done
    return 1
}

find_installer() {
    installer=${LBHOST_INSTALLER:-}
    if [ -z "$installer" ]; then
        installer=pip
        command -v uv >/dev/null 2>&1 && installer=uv
    fi
    case $installer in
    uv)
        command -v uv >/dev/null 2>&1 || die "LBHOST_INSTALLER is uv, but there is no uv"
        ;;
    pip)
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python has no venv module (Debian, Ubuntu: sudo apt-get install python3-venv)"
        ;;
    *) die "LBHOST_INSTALLER is uv or pip, not $installer" ;;
    esac
}

# --- doing it -------------------------------------------------------------------------------

set_up() { # EXTRA...
    read_stamp
    for extra in "$@"; do # what was installed before stays
        case " $stamped_extras " in
        *" $extra "*) ;;
        *) stamped_extras="${stamped_extras:+$stamped_extras }$extra" ;;
        esac
    done
    extras=$stamped_extras

    find_python
    find_installer
    if ! has_llama_cpp; then
        has_compiler || die "no C++ compiler, and llama-cpp-python is built from source" \
            "(Debian, Ubuntu: sudo apt-get install g++)"
        say "setting up in .venv; llama-cpp-python builds from source: 5 to 6 minutes on two cores," \
            "once"
    else
        say "setting up in .venv"
    fi
    make_venv
    install_lbhost
    printf '%s\n%s\n' "$(setup_key)" "$extras" >"$setup_stamp"
    say "set up in .venv ($(took))"
}

# An environment made elsewhere or by a Python that is gone cannot be repaired, only replaced.
make_venv() {
    started=$(date +%s)
    version=$(python_version "$venv/bin/python") || version=0.0
    case $stamped_key in
    '' | "$root "*) ;;
    *) version=0.0 ;;
    esac
    if is_new_enough "$version"; then
        [ "$installer" = uv ] || "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return 0
    fi
    if [ "$installer" = uv ]; then
        uv venv --quiet --clear --python "$(command -v "$python")" "$venv" || die "uv venv failed"
    else
        "$python" -m venv --clear "$venv" || die "$python -m venv failed"
    fi
}

install_lbhost() {
    what="${root}[$(printf '%s' "$extras" | tr ' ' ',')]"
    # Without this a g++ 12 build crashes on CPUs with AMX; see there.
    export CXXFLAGS="${CXXFLAGS:+$CXXFLAGS }-include \"$root/scripts/lib/compiler_fixes.h\""
    # Verbose, because the compiler's [12/140] lines in the log are the only sign of progress.
    if [ "$installer" = uv ]; then
        set -- uv pip install --verbose --python "$venv/bin/python" --editable "$what"
    else
        set -- "$venv/bin/python" -m pip install --verbose --no-input \
            --disable-pip-version-check --editable "$what"
    fi
    run_logged "$@" || explain_failure
}

# Runs a command in its own session with its output in the log, showing that it is alive.
# Ctrl-C stops it with all its children.
run_logged() {
    setsid "$@" >"$setup_log" 2>&1 </dev/null &
    job=$!
    trap 'stop_job 130' INT
    trap 'stop_job 143' TERM
    trap 'stop_job 129' HUP
    ticks=0
    while kill -0 "$job" 2>/dev/null; do
        sleep 0.5
        ticks=$((ticks + 1))
        show_progress
    done
    status=0
    wait "$job" || status=$?
    [ ! -t 2 ] || printf '\r\033[K' >&2
    trap - INT TERM HUP
    return "$status"
}

stop_job() { # EXIT-STATUS
    kill -s TERM -- "-$job" 2>/dev/null || :
    printf '\n' >&2
    say "set-up stopped; run the script again to go on"
    exit "$1"
}

# Every half second. On a terminal a line that is rewritten; elsewhere a new one every 30 s.
show_progress() {
    if [ -t 2 ]; then
        printf '\r\033[Klbhost: %s, %s' "$(activity)" "$(took)" >&2
    elif [ $((ticks % 60)) -eq 0 ]; then
        say "$(activity), $(took)"
    fi
}

took() {
    elapsed=$(($(date +%s) - started))
    printf '%d:%02d' $((elapsed / 60)) $((elapsed % 60))
}

# The build's last "[12/140]", if it has come that far.
activity() {
    compiled=$(tail -c 200000 "$setup_log" | grep -aoE '\[[0-9]+/[0-9]+\] ' | tail -n 1) || :
    if [ -n "$compiled" ]; then
        printf 'building llama-cpp-python %s' "${compiled% }"
    else
        printf 'installing'
    fi
}

explain_failure() {
    network='name resolution|NewConnectionError|Failed to establish a new connection'
    network="$network|Connection refused|Network is unreachable|No route to host"
    network="$network|ConnectTimeout|timed out|dns error|error sending request"
    if grep -aqE "$network" "$setup_log"; then
        die "no network: the package index cannot be reached (log: $setup_log)"
    fi
    if grep -aq 'No space left on device' "$setup_log"; then
        die "the disk is full (log: $setup_log)"
    fi
    say "installing failed; the end of $setup_log:"
    tail -n 25 "$setup_log" | cut -c 1-200 >&2
    exit 1
}
