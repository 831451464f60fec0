# Source this in bash or zsh: puts the environment on PATH and tells Dagster where things are.
#     source env.sh && dagster asset materialize --select vecap_sample
if [ -n "${BASH_SOURCE:-}" ]; then _veclip_here="${BASH_SOURCE[0]}"; else _veclip_here="${(%):-%x}"; fi
_veclip_here="$(cd "$(dirname "$_veclip_here")" && pwd)"

export PATH="$_veclip_here/.venv/bin:$PATH"
export VECLIP_ROOT="${VECLIP_ROOT:-$_veclip_here/data}"
# Dagster's own store is local even where the data is in a bucket.
case "$VECLIP_ROOT" in
    *://*) _veclip_home="$_veclip_here/data/dagster" ;;
    *)
        mkdir -p "$VECLIP_ROOT" || { echo "VECLIP_ROOT=$VECLIP_ROOT can't be written: set it to a folder that can." >&2; return 1; }
        _veclip_home="$(cd "$VECLIP_ROOT" && pwd)/dagster"
        ;;
esac
export DAGSTER_HOME="${DAGSTER_HOME:-$_veclip_home}"
mkdir -p "$DAGSTER_HOME"
[ -e "$DAGSTER_HOME/dagster.yaml" ] || cp "$_veclip_here/dagster.yaml" "$DAGSTER_HOME/dagster.yaml"
# Only the `dagster asset` commands need this; `dagster dev -w workspace.yaml` refuses to start beside it: unset it there.
export DAGSTER_MODULE_NAME=veclip_dagster.definitions
export DAGSTER_DISABLE_TELEMETRY=1 NO_ALBUMENTATIONS_UPDATE=1 VLLM_NO_USAGE_STATS=1 MLFLOW_DISABLE_TELEMETRY=true
unset _veclip_here _veclip_home
