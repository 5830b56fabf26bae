#!/bin/sh
# Debian packages that the whole test run uses. As root the missing ones are installed; otherwise they are named.
# Without chromium the tests of the page are skipped, without coturn those of a relay; without flite espeak-ng speaks for the caller, and without libopus0
# the copy inside of PyAV's wheel is used.
set -u
missing=""
have() { command -v "$1" >/dev/null 2>&1; }
have chromium || missing="$missing chromium"
have flite || missing="$missing flite"
have turnserver || missing="$missing coturn"
ldconfig -p 2>/dev/null | grep -q libopus.so.0 || missing="$missing libopus0"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && have apt-get; then
    echo "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null \
        || echo "could not install all of:$missing; the tests do without, or are skipped"
else
    echo "not installed:$missing; the tests do without, or are skipped"
fi
exit 0
