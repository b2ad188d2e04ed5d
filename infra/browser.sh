#!/usr/bin/env bash
# The search page is tested in a real browser. Where there is none and nobody may install one, those tests are skipped.
# Called by make test alone.
set -euo pipefail
command -v chromedriver >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing chromium for the tests of the search page" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y --no-install-recommends chromium chromium-driver >/dev/null 2>&1 && exit 0
    { apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 && exit 0
fi
echo "setup: no chromium; the tests of the search page will be skipped (apt-get install chromium chromium-driver)" >&2
