# What the checks in a chroot share: a bare Debian in a folder, which reaches packages the way
# this machine does. To be sourced; SUITE and MIRROR choose the Debian (bookworm, and debootstrap's own mirror).
# shellcheck shell=bash

# need_chroot DIR: refuse what can't be one.
need_chroot() {
    [[ $EUID == 0 ]] || die "a chroot needs root."
    command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
    if [[ -d $1 && ! -e $1/.deskfleet-chroot && -n $(ls -A "$1") ]]; then die "$1 exists and is not a chroot of ours."; fi
}

# make_chroot DIR FRESH PACKAGES USER: where there is none, or anew where FRESH is not empty; with an ordinary user.
make_chroot() {
    local dir=$1 fresh=$2 packages=$3 user=$4
    if [[ -e $dir/.deskfleet-chroot && -n $fresh ]]; then rm -rf --one-file-system "$dir"; fi
    if [[ -e $dir/.deskfleet-chroot ]]; then return; fi
    debootstrap --variant=minbase --include="$packages" "${SUITE:-bookworm}" "$dir" ${MIRROR:+"$MIRROR"} >/dev/null
    chroot "$dir" useradd --create-home --shell /bin/bash "$user"
    echo "$user ALL=(ALL) NOPASSWD: ALL" >"$dir/etc/sudoers.d/$user"
    touch "$dir/.deskfleet-chroot"
}

# copy_settings DIR USER: this machine's apt, pip and npm settings, and certificates.
copy_settings() {
    local dir=$1 user=$2 path home
    for path in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/npmrc /etc/ssl/certs /usr/local/share/ca-certificates \
        /etc/apt/apt.conf.d; do
        if [[ -e $path ]]; then
            mkdir -p "$dir${path%/*}"
            cp -rTL --remove-destination "$path" "$dir$path"
        fi
    done
    if [[ -z ${SUITE:-} && -e /etc/apt/sources.list.d/debian.sources ]]; then
        cp /etc/apt/sources.list.d/debian.sources "$dir/etc/apt/sources.list.d/"
        rm -f "$dir/etc/apt/sources.list"
    fi
    for home in /root "/home/$user"; do
        for path in .npmrc .config/pip/pip.conf .pip/pip.conf; do
            if [[ -e ~/$path ]]; then install -D -m 644 ~/"$path" "$dir$home/$path"; fi
        done
    done
    chroot "$dir" chown -R "$user": "/home/$user"
}

# copy_checkout DIR HOME USER AGAIN: what git would commit, tracked files and new ones that are not ignored, for a user;
# what an earlier run set up there is kept where AGAIN is not empty.
copy_checkout() {
    local dir=$1 home=$2 user=$3 again=$4
    if [[ -z $again ]]; then rm -rf --one-file-system "$dir$home/deskfleet"; fi
    mkdir -p "$dir$home/deskfleet"
    git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do if [[ -e $file ]]; then printf '%s\0' "$file"; fi; done |
        tar --create --null --files-from=- | tar --extract --no-same-owner -C "$dir$home/deskfleet"
    chroot "$dir" chown -R "$user": "$home/deskfleet"
}

# The environment of a run: bare, but for what tells programs how to reach their packages.
settings_of_environment() {
    env | grep -E '^(PIP_|NPM_CONFIG_|npm_config_|NODE_EXTRA_CA_CERTS|SSL_CERT_|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE)|_proxy=' ||
        true
}

# in_chroot DIR USER HOME FOLDER BINDS -- COMMAND...: run a command as a user, with mounts and processes that are gone
# when it ends. Network and ports are shared with this machine. BINDS: folders to show, one a line.
in_chroot() {
    local dir=$1 user=$2 home=$3 folder=$4
    local -a environment mounts=(/dev)
    mapfile -t -O 1 mounts < <(if [[ -n $5 ]]; then printf '%s\n' "$5"; fi)
    shift 6
    mapfile -t environment < <(settings_of_environment)
    # shellcheck disable=SC2016  # the inner shell's variables
    local script='set -e; dir=$1; shift
        while [ "$1" != -- ]; do mkdir -p "$dir$1"; mount --rbind "$1" "$dir$1"; shift; done; shift
        mount -t proc proc "$dir/proc"
        mount -t sysfs -o ro sysfs "$dir/sys"
        exec chroot "$dir" "$@"'
    unshare --mount --pid --fork --kill-child sh -c "$script" sh "$dir" "${mounts[@]}" -- \
        setpriv --reuid "$user" --regid "$user" --init-groups env -i -C "$folder" \
        HOME="$home" USER="$user" LOGNAME="$user" LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${environment[@]}" "$@"
}
