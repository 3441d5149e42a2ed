#!/usr/bin/env bash
# Judge the base, every checkpoint and the final model of a run:  bash eval/eval_all_checkpoints.sh [RUN_DIR] [flags of eval_all.py]
# Python: $PYTHON, else the active one if it has torch, else the repository's .venv.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

python=${PYTHON:-python}
if [[ -z ${PYTHON:-} && -x $repository/.venv/bin/python ]] && ! "$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' 2>/dev/null; then
  python=$repository/.venv/bin/python
fi
exec "$python" "$repository/eval/eval_all.py" "$@"
