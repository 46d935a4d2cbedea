#!/usr/bin/env bash
# dist/biruda, the one executable, and dist/workers/ARCH, the static workers that it carries: see docs/static-binary.md.
set -euo pipefail
cd "$(dirname "$0")"
for candidate in "${BIRUDA_PYTHON:-}" /usr/bin/python3 python3.11 python3.12 python3.13 python3; do
    [ -n "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
        && exec "$candidate" -B packaging/build.py "$@"
done
echo "build-static: no Python 3.11 or later with the venv module was found" >&2
echo "hint: apt-get install python3 python3-venv, or name one with BIRUDA_PYTHON" >&2
exit 1
