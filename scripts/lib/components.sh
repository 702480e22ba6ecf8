# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# components.sh - what setup lays down beside the system's packages
#
# Each component is a folder PREFIX/NAME, made under another name and renamed into place when it is
# complete: a folder that exists is whole. For each there are two functions: NAME_needed says whether
# this system lacks it, NAME_make TREE APT fills the empty folder TREE, with APT to keep apt's files in.
#
#   crypto    include/ and lib/ of a static libcrypto
#   engine    bin/qemu-system-x86_64, qemu-img, qemu-io, qemu-nbd, qemu-storage-daemon; root/ the files they use
#   kernels   cloud/ and full/: vmlinuz and lib/modules of Debian's kernels for the test guests
#   blkio     include/ and lib/ of libblkio for the benchmark client

# component_dir NAME: where it is, or nothing.
component_dir() {
    local p
    for p in ${prefix:+"$prefix"} "$SYSTEM_PREFIX" "$USER_PREFIX"; do
        if [ -d "$p/$1" ]; then
            echo "$p/$1"
            return
        fi
    done
}

# lay_down NAME: makes $prefix/NAME.
lay_down() {
    local work=$prefix/.making.$1
    rm -rf "$work" # left by a run that was killed
    mkdir -p "$work/tree" "$work/apt"
    # In the background, because bash ignores -e in whatever stands in a condition.
    (set -e; "$1_make" "$work/tree" "$work/apt") >"$work/log" 2>&1 </dev/null &
    if ! wait $!; then
        tail -n 30 "$work/log" >&2
        die "$1 failed; the whole log is $work/log"
    fi
    chmod -R a+rX "$work/tree"
    mv -T "$work/tree" "$prefix/$1"
    rm -rf "$work"
}

at_least() { # VERSION MINIMUM
    dpkg --compare-versions "$1" ge "$2"
}

# ---- crypto ----
crypto_needed() {
    local have
    have=$(pkg-config --modversion libcrypto 2>/dev/null) || have=0
    ! at_least "$have" "$OPENSSL_MIN"
}

# Fetches the newest source that the mirror has: for some hours after an update, lists can name files that a
# mirror does not hold yet, while those of the release before are there. All are in the signed lists.
openssl_source() {
    local version
    for version in $(apt-cache showsrc openssl | sed -n 's/^Version: //p' | sort -Vru); do
        at_least "$version" "$OPENSSL_MIN" || continue
        if apt-get -qq --download-only source "openssl=$version"; then
            return
        fi
        echo "the mirror lacks openssl $version"
        rm -f openssl_*
    done
    die "no source package of OpenSSL $OPENSSL_MIN or newer could be fetched"
}

crypto_make() {
    local tree=$1 apt=$2 source
    private_apt_open "$apt" "$NEWER_RELEASE"
    cd "$apt"
    openssl_source
    # apt has checked the hashes against the signed lists; the uploader's own signature adds nothing.
    dpkg-source --no-check -x openssl_*.dsc source
    source=$apt/source
    cd "$source"
    # Only libcrypto. Providers stay loadable at run time. No configuration file of the system's
    # (other) OpenSSL may change what this one does, hence a folder of its own.
    ./Configure no-shared no-tests no-apps no-docs no-legacy no-ssl3 no-comp \
        --prefix=/usr --libdir=lib --openssldir=/etc/quantavirt/openssl
    make -s build_generated
    make -s -j"$(nproc)" libcrypto.a
    mkdir -p "$tree/lib/pkgconfig" "$tree/include"
    cp libcrypto.a "$tree/lib/"
    cp -r include/openssl "$tree/include/"
    find "$tree/include" -name '*.h.in' -delete
    cp LICENSE.txt "$tree/"
    cat >"$tree/lib/pkgconfig/libcrypto.pc" <<PC
prefix=\${pcfiledir}/../..
libdir=\${prefix}/lib
includedir=\${prefix}/include

Name: OpenSSL-libcrypto
Description: OpenSSL cryptography library (static)
Version: $(dpkg-parsechangelog -S Version | sed 's/^[0-9]*://; s/-.*//')
Libs: -L\${libdir} -lcrypto -ldl -pthread
Cflags: -I\${includedir}
PC
}

# ---- engine ----
engine_needed() {
    local have
    have=$(qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p') || have=0
    ! at_least "${have:-0}" "$QEMU_MIN"
}

# The engine's programs run with the C library and the libraries they were built for, through that
# release's own dynamic loader, without a chroot.
engine_make() {
    local tree=$1 apt=$2 program
    private_apt_open "$apt" "$NEWER_RELEASE" "$NEWER_RELEASE-backports"
    private_apt_tree "$apt" "$tree/root" "$NEWER_RELEASE-backports" \
        qemu-system-x86 qemu-utils seabios ovmf ipxe-qemu
    rm -rf "$tree"/root/usr/share/{doc,man,locale,info,lintian,bug}
    mkdir -p "$tree/bin"
    for program in qemu-system-x86_64 qemu-img qemu-io qemu-nbd qemu-storage-daemon; do
        engine_wrapper "$program" >"$tree/bin/$program"
        chmod 755 "$tree/bin/$program"
        "$tree/bin/$program" --version
    done
    "$tree/bin/qemu-img" --version | sed -n '1s/.*version \([0-9.]*\).*/\1/p' >"$tree/version"
    at_least "$(cat "$tree/version")" "$QEMU_MIN"
}

engine_wrapper() {
    local libs data=''
    libs=usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)
    [ "$1" != qemu-system-x86_64 ] ||
        data=' -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu"'
    cat <<WRAPPER
#!/bin/sh
# Runs $1 of the private engine with its own libraries; see scripts/lib/components.sh.
self=\$(readlink -f "\$0")
root=\${self%/bin/*}/root
export QEMU_MODULE_DIR="\$root/$libs/qemu"
exec "\$root/$libs/ld-linux-x86-64.so.2" --argv0 "\$0" --library-path "\$root/$libs" "\$root/usr/bin/$1"$data "\$@"
WRAPPER
}

# ---- kernels ----
kernels_needed() { true; } # the system's own may be missing, unreadable to the tests, or without modules

kernels_make() {
    local tree=$1 apt=$2 codename flavour package deb
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    private_apt_open "$apt" "$codename"
    cd "$apt"
    for flavour in cloud full; do
        package=linux-image-cloud-amd64
        [ $flavour = cloud ] || package=linux-image-amd64
        package=$(apt-cache depends --no-recommends --no-suggests "$package" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
        [ -n "$package" ]
        apt-get -qq download "$package"
        deb=$(ls "$package"_*.deb)
        kernel_unpack "$deb" "$tree/$flavour"
        rm "$deb"
    done
}

# The parts of a kernel package that a guest with disks needs; the rest is eight times as large.
kernel_unpack() {
    local deb=$1 to=$2 k=./lib/modules/\*/kernel version
    mkdir -p "$to"
    dpkg-deb --fsys-tarfile "$deb" >"$to/data.tar"
    tar -tf "$to/data.tar" >"$to/names"
    if grep -q '^\./usr/lib/modules/' "$to/names"; then # Debian 13 and later
        k=./usr/lib/modules/\*/kernel
    fi
    tar -C "$to" -xf "$to/data.tar" --wildcards './boot/vmlinuz-*' "${k%/kernel}/modules.*" \
        "$k"/{arch,block,crypto,fs,lib} "$k"/drivers/{acpi,ata,block,cdrom,char,firmware,md,nvme,pci,scsi,virtio}
    rm "$to/data.tar" "$to/names"
    [ ! -d "$to/usr/lib" ] || { mv "$to/usr/lib" "$to/lib" && rmdir "$to/usr"; }
    mv "$to"/boot/vmlinuz-* "$to/vmlinuz"
    rmdir "$to/boot"
    version=$(ls "$to/lib/modules")
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$to" "$version"
}

# ---- blkio ----
blkio_needed() { ! pkg-config --exists blkio 2>/dev/null; }

blkio_make() {
    local tree=$1 apt=$2 libs
    libs=usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)
    private_apt_open "$apt" "$NEWER_RELEASE"
    private_apt_tree "$apt" "$tree/root" "$NEWER_RELEASE" libblkio-dev
    ln -s root/usr/include "$tree/include"
    ln -s "root/$libs" "$tree/lib"
}
