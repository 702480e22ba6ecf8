# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# private-apt.sh - apt on the package lists of another release, in a folder of its own
#
# Nothing here touches the system's apt state, and nothing needs root. What is downloaded is checked
# by apt as always: the release's signature against Debian's archive keys, then the hashes in it.
# Proxies and other Acquire settings are the machine's own.

DEBIAN_KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

# The address of the Debian archive this machine's apt is set up with. apt itself reads its sources,
# so one-line and deb822 files both work.
debian_mirror() {
    local codename found
    if [ -n "$mirror" ]; then
        echo "$mirror"
        return
    fi
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016
    found=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)' \
        'Identifier: Packages' 2>/dev/null |
        awk -F'|' -v rel="$codename" '$4 == "main" && ($1 == "Debian" && $2 == "Debian" || $3 == rel) {print $5; exit}')
    [ -n "$found" ] || die "apt's sources name no Debian archive; give one with --mirror URL"
    echo "$found"
}

# private_apt_open DIR RELEASE... : makes DIR an apt of its own for these releases, lists fetched.
# Sets APT_CONFIG for the calls that follow in this shell.
private_apt_open() {
    local dir=$1 release uri
    shift
    [ -r "$DEBIAN_KEYS" ] || die "$DEBIAN_KEYS is missing (package debian-archive-keyring)"
    uri=$(debian_mirror)
    mkdir -p "$dir"/{lists/partial,archives/partial,etc}
    chmod 755 "$dir" # apt fetches as its own user
    : >"$dir/status"
    for release in "$@"; do
        printf 'Types: deb deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' \
            "$uri" "$release" "$DEBIAN_KEYS"
    done >"$dir/etc/debian.sources"
    {
        apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets' || true
        cat <<CONF
Acquire::Languages "none";
Acquire::Retries "3";
APT::Install-Recommends "false";
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "/dev/null";
Dir::Etc::SourceList "$dir/etc/debian.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$dir";
Dir::State::Lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::State::extended_states "$dir/extended_states";
Dir::Cache "$dir";
Dir::Cache::Archives "$dir/archives";
CONF
    } >"$dir/etc/apt.conf"
    export APT_CONFIG=$dir/etc/apt.conf
    apt-get -qq update
}

# private_apt_tree DIR TREE RELEASE PACKAGE... : unpacks the packages and all they depend on into TREE.
# No maintainer script runs; TREE/packages lists what it was made of.
private_apt_tree() {
    local dir=$1 tree=$2 release=$3 deb
    shift 3
    apt-get -qq -y --download-only -t "$release" install "$@"
    mkdir -p "$tree"
    for deb in "$dir"/archives/*.deb; do
        dpkg-deb -x "$deb" "$tree"
        # shellcheck disable=SC2016
        dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb"
    done >"$tree/packages"
}
