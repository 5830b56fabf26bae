#!/bin/sh
# Debian packages that the whole test run uses. As root the missing ones are installed; otherwise they are named,
# and the tests that need them skip with the same name.
set -u
missing=""
have() { command -v "$1" >/dev/null 2>&1; }
have redis-server || missing="$missing redis-server"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
have chromium || missing="$missing chromium"
have flite || missing="$missing flite"
ldconfig -p 2>/dev/null | grep -q libopus.so.0 || missing="$missing libopus0"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && have apt-get; then
    echo "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # A server that a test needs is started by that test: no service is started by the installation.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    # shellcheck disable=SC2086
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null \
        || echo "could not install all of:$missing; the tests that need them are skipped"
else
    echo "not installed:$missing; the tests that need them are skipped"
fi
exit 0
