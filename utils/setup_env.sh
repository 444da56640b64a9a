# Sourced by infer.sh and test.sh: finds a Python that can run the package, and makes one when there is none.
#
#   source utils/setup_env.sh
#   ensure_env            # what the package needs
#   ensure_env dev        # and the tools of the tests
#
# Sets and exports PYTHON, puts its folder first on PATH and the repository on PYTHONPATH. The active environment is
# used as it is when it has everything; otherwise .venv beside pyproject.toml (made on the first run: about a minute and
# 1.3 GB with the CPU build of torch, more with CUDA). Nothing is downloaded once that is done.

SYNTHEOCC_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# outside virtual environments: what one of those holds is not seen by an environment made from it
_OWN_TORCH='import importlib.util, sys; sys.exit(sys.prefix != sys.base_prefix or not importlib.util.find_spec("torch"))'

_is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

_has_everything() { # python, extras
    local python="$1"
    shift
    _is_new_enough "$python" && "$python" "$SYNTHEOCC_ROOT/utils/missing_requirements.py" "$@" >/dev/null
}

_use() { # python
    export PYTHON="$1"
    export PATH="$(dirname "$1"):$PATH"
    export PYTHONPATH="$SYNTHEOCC_ROOT${PYTHONPATH:+:$PYTHONPATH}"
}

_make_env() { # extras
    local venv="$SYNTHEOCC_ROOT/.venv" log="$SYNTHEOCC_ROOT/.venv/setup.log" base="" name options=() constraint=()
    # A machine that brings its own torch (built for its driver) keeps it; elsewhere constraints.txt picks the version.
    if _is_new_enough python3 && python3 -c "$_OWN_TORCH"; then
        base="$(command -v python3)"
        options=(--system-site-packages)
    else
        constraint=(-c "$SYNTHEOCC_ROOT/constraints.txt")
        for name in python3.11 python3.12 python3.13 python3 python; do
            if [ -z "$base" ] && _is_new_enough "$name"; then base="$(command -v "$name")"; fi
        done
    fi
    if [ -z "$base" ]; then
        echo "syntheocc needs Python 3.11 or newer, and none is on PATH; install one and run this again" >&2
        return 1
    fi
    local what="$SYNTHEOCC_ROOT${1:+[$(IFS=,; echo "$*")]}"
    echo "setting up $venv with $("$base" --version) (once; log in .venv/setup.log)"
    [ -x "$venv/bin/python" ] || "$base" -m venv ${options[@]+"${options[@]}"} "$venv" || return 1
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        ${constraint[@]+"${constraint[@]}"} -e "$what" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        echo "setting up failed: see $log; run this again when the cause is gone" >&2
        return 1
    fi
}

ensure_env() { # extras
    local candidate
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" \
        "$(command -v python3 || true)" "$SYNTHEOCC_ROOT/.venv/bin/python"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ] && _has_everything "$candidate" "$@"; then
            _use "$candidate"
            return 0
        fi
    done
    _make_env "$@" || return 1
    _use "$SYNTHEOCC_ROOT/.venv/bin/python"
}
