# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Code that the scripts share: messages, host programs, and the cache of artefacts that are expensive to build. Bash
# scripts with `set -eu` source this file.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
scripts=$top/scripts
cache=${VDUSE_RS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vduse_rs}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd -P)

# The Debian release of the tools and of the guest, and the suite with newer kernels for that release.
suite=trixie
backports=trixie-backports

# The files and directories from which the module is built.
module_sources=(Kbuild VERSION vduse_rs.rs bindings driver uapi)

say() { printf '[vduse_rs] %s\n' "$*" >&2; }
die() { printf '[vduse_rs] error: %s\n' "$*" >&2; exit 1; }

# need PROGRAM=PACKAGE...: installs the PACKAGE of each PROGRAM that the host lacks, or fails with a message that says
# what to install.
need() {
	local pair missing=()
	for pair in "$@"; do
		command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} -eq 0 ] && return
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		die "this host lacks ${missing[*]}: install it with the package manager (apt-get install ${missing[*]})"
	fi
	say "this host lacks ${missing[*]}: installing it with apt-get"
	# Run one apt-get at a time, because apt-get does not wait for another one.
	flock --close "$cache/apt.lock" sh -c '
		apt-get -q update
		DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@"
	' sh "${missing[@]}" >"$cache/apt.log" 2>&1 || {
		tail -n 20 "$cache/apt.log" >&2
		die "apt-get failed (see above)"
	}
}

# need_root: fails unless the script runs as root on x86_64. The scripts use mounts and chroot, which need root.
need_root() {
	[ "$(id -u)" = 0 ] || die "this needs root, for mounts and chroot (\`make KDIR=...\` does not)"
	[ "$(uname -m)" = x86_64 ] || die "only x86_64 is supported, this is $(uname -m)"
}

# installable_module FILE [KDIR=DIRECTORY]: builds the module for installation and writes it to FILE. The module is
# named `vduse` and has no debugging information. The build uses a copy of the sources, so that the checkout's own build
# is left alone.
installable_module() (
	need strip=binutils
	copy=$(mktemp -d "$cache/installable.XXXXXX")
	trap 'rm -rf "$copy"' EXIT
	cp -r "${module_sources[@]/#/$top/}" "$top/Makefile" "$top/scripts" "$copy/"
	find "$copy" \( -name '*.o' -o -name '.*.cmd' -o -name '*_generated.rs' \) -delete
	# If a make runs this script, the settings of that make must not affect the make that builds the module.
	unset MAKEFLAGS MFLAGS MAKEOVERRIDES
	make -C "$copy" --no-print-directory modules VDUSE_RS_NAME=vduse "${@:2}" >"$copy/log" 2>&1 ||
		{ tail -n 20 "$copy/log" >&2; die "the module does not build (see above)"; }
	strip --strip-debug -o "$1" "$copy/vduse.ko"
)

# artefact NAME INPUT...: sets $out to the directory of the artefact NAME. If this artefact, with these inputs, is not
# in the cache, the function build_NAME builds it in an empty directory. After a change of build_NAME, the artefact is
# built anew.
#
# An artefact is valid only with its stamp, which is written last, before the directory gets its final name. A process
# builds an artefact under a lock. So if the holder of the lock finds a directory without a stamp, or a temporary
# directory, that directory is from an interrupted build.
artefact() {
	local name=$1 key tmp lock old status
	key=$({ printf '%s\n' "$@" "$suite"; declare -f "build_${name//-/_}"; } | sha256sum | cut -c1-12)
	out=$cache/$name/$key
	if [ -e "$out/stamp" ]; then
		touch -c "$out/stamp"
		return
	fi
	mkdir -p "$cache/$name"
	exec {lock}>"$cache/$name/lock"
	flock -n "$lock" || { say "$name: another build is making it, waiting"; flock "$lock"; }
	if [ ! -e "$out/stamp" ]; then
		rm -rf --one-file-system "$cache/$name"/tmp.* "$out"
		tmp=$(mktemp -d "$cache/$name/tmp.XXXXXX")
		chmod 755 "$tmp"
		SECONDS=0
		# Do not call the function in a condition, where `set -e` would have no effect inside the function.
		set +e
		(set -e; cd "$tmp"; "build_${name//-/_}") 3>&2 >"$cache/$name/log" 2>&1
		status=$?
		set -e
		if [ $status != 0 ]; then
			tail -n 20 "$cache/$name/log" >&2
			rm -rf --one-file-system "$tmp"
			die "$name failed (the whole log: $cache/$name/log)"
		fi
		sync -f "$tmp"
		date >"$tmp/stamp"
		mv -T "$tmp" "$out"
		say "$name: done in $SECONDS s"
		# Remove artefacts with other inputs that have not been used for a week.
		for old in "$cache/$name"/*/stamp; do
			[ "$old" = "$out/stamp" ] || [ -z "$(find "$old" -mtime +7)" ] || rm -rf --one-file-system "${old%/stamp}"
		done
	fi
	exec {lock}>&-
}

# step TEXT: says what a long build is doing. Only for the functions build_*, where descriptor 3 is the terminal.
step() { printf '[vduse_rs] %s\n' "$*" >&3; printf '## %s\n' "$*"; }

# new_run: sets $run to a new directory for a guest's instructions and output. Keeps the logs of the last runs.
new_run() {
	mkdir -p "$cache/runs"
	run=$(mktemp -d "$cache/runs/$(date +%m%d-%H%M%S).XXXX")
	# Do not remove the directories of runs that may still be in progress.
	find "$cache/runs" -mindepth 1 -maxdepth 1 -type d | sort -r | tail -n +40 |
		xargs -r -I{} find {} -maxdepth 0 -mmin +300 | xargs -r rm -rf
}

# write_command COMMAND [ARGUMENT]...: writes the guest's command to $run/command. A COMMAND without arguments is a
# shell command line.
write_command() {
	if [ $# = 1 ]; then
		printf '%s\n' "$1"
	else
		printf 'exec%s\n' "$(printf ' %q' "$@")"
	fi >"$run/command"
}
