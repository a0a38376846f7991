# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2016,SC2054,SC2154
#
# Functions for the tests of installation (`package` and `recipe`). These tests use a virtual machine with a Debian
# system as a user has it. The machine's disk keeps its contents from one boot to the next. A script that has `set -eu`
# sources this file after scripts/lib.sh.
#
# First, `begin_machine NAME` makes the root directory of the system. `in_machine` runs commands in this root, in a
# chroot, which is quicker than booting a machine. Then `make_disk` turns the root into the machine's disk. After that,
# `boot STEP SECONDS` boots the machine, which runs the file /root/STEP of its disk and powers itself off.

here=$top/qemu-test
guest=$("$scripts/debian-root" guest)

# begin_machine NAME: sets $machine to the directory of the machine NAME in the cache, and $root to a fresh Debian root
# in that directory. In the root, apt can also install packages from backports. If another script uses the machine NAME,
# waits until that script ends.
begin_machine() {
	local fresh
	fresh=$("$scripts/debian-root" fresh)
	machine=$cache/$1
	mkdir -p "$machine"
	exec {turn}<"$machine"
	flock "$turn"
	# Remove the files that an earlier run has left if it was killed.
	clean_machine
	trap clean_machine EXIT
	root=$machine/root
	cp -a --reflink=auto "$fresh" "$root"
	sed -n "s/^\(deb .* \)$suite main.*/\1$backports main/p" "$root/etc/apt/sources.list" \
		>"$root/etc/apt/sources.list.d/$backports.list"
	[ -s "$root/etc/apt/sources.list.d/$backports.list" ] || die "the fresh root has no source of $suite"
	printf '[Match]\nType=ether\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/all.network"
	echo trixie >"$root/etc/hostname"
	cat >"$root/etc/systemd/system/step.service" <<-'END'
		[Unit]
		Wants=network-online.target
		After=network-online.target multi-user.target
		[Service]
		Type=oneshot
		Environment=HOME=/root
		ExecStart=/bin/sh -c 'bash /root/$(sed "s/.* step=\\([^ ]*\\).*/\\1/" /proc/cmdline) >/dev/ttyS1 2>&1; echo "status $?" >/dev/ttyS1'
		ExecStopPost=/bin/sh -c 'cp /vmlinuz /initrd.img /boot/next/; sync; systemctl --no-block poweroff'
		[Install]
		WantedBy=graphical.target
	END
	mkdir "$root/boot/next"
	in_machine systemctl -q enable systemd-networkd systemd-networkd-wait-online step
	in_machine systemctl -q set-default graphical.target
}
clean_machine() { find "$machine" -mindepth 1 -maxdepth 1 -exec rm -rf --one-file-system {} +; }

# in_machine COMMAND...: runs COMMAND in the root. Packages that COMMAND installs neither start nor reload services.
in_machine() {
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	local status=0
	"$scripts/in-root" "$root" -- "$@" || status=$?
	rm "$root/usr/sbin/policy-rc.d"
	return $status
}

# add_compiled RELEASE: copies compiled files for the kernel RELEASE from the cache of this host to the root. Otherwise,
# the package vduse-rs-dkms would have to compile them once for this kernel.
add_compiled() {
	local kernel metadata key kept=$root/var/lib/vduse-rs/$1
	KVER=$1 FLAVOUR='' "$scripts/kernel" --update >/dev/null
	kernel=$(KVER=$1 FLAVOUR='' "$scripts/kernel")
	metadata=$(KVER=$1 FLAVOUR='' "$scripts/metadata")
	# The file's name contains a key, and packaging/dkms/build looks for exactly this name.
	key=$("$scripts/rust-tree" --key "$kernel/headers/usr/src/linux-headers-$1")
	mkdir -p "$kept"
	"$scripts/in-root" "$(cat "$metadata/root")" "$metadata/linux:/mnt" "$scripts/rust-tree:/opt/rust-tree" "$kept:/srv" -- \
		/opt/rust-tree --pack /mnt "/srv/metadata-$key.tar.zst"
}

# make_disk: makes the disk $machine/disk.img with the contents of $root, and removes $root.
make_disk() {
	cp "$root/vmlinuz" "$root/initrd.img" "$root/boot/next/"
	echo nameserver 10.0.2.3 >"$root/etc/resolv.conf"
	"$scripts/in-root" "$guest" "$machine" -- sh -eu -c '
		truncate -s 24G "$1/disk.img"
		mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 -d "$1/root" "$1/disk.img"
	' sh "$machine"
	rm -rf --one-file-system "$root"
}

# boot STEP SECONDS [QEMU_OPTION]...: boots the machine with the kernel that a boot loader would start. Runs /root/STEP
# in the machine and prints its output. Fails with the same exit statuses as qemu-test/run. The machine has the network
# of this host, but not the host's proxy.
boot() {
	local step=$1 seconds=$2 accel shown status=0
	shift 2
	new_run
	: >"$run/said"
	: >"$run/kernel.log"
	"$scripts/in-root" "$guest" "$machine" -- sh -eu -c '
		for file in vmlinuz initrd.img; do debugfs -R "dump /boot/next/$file $1/$file" "$1/disk.img" 2>/dev/null; done
	' sh "$machine"
	if [ "$("$here/accel")" = kvm ]; then
		accel=(-accel kvm -cpu host)
	else
		accel=(-accel tcg,thread=multi -cpu max)
	fi
	"$here/limit" "$seconds" "$scripts/in-root" "$guest" "$cache" -- \
		qemu-system-x86_64 -name "$step" -machine q35 -nodefaults -no-user-config -display none -no-reboot \
		"${accel[@]}" -smp 2 -m 4096 -kernel "$machine/vmlinuz" -initrd "$machine/initrd.img" \
		-append "root=/dev/vda rw console=ttyS0 ignore_loglevel systemd.show_status=no panic=-1 oops=panic tsc=nowatchdog step=$step" \
		-chardev "file,id=log,path=$run/kernel.log" -serial chardev:log -chardev "file,id=said,path=$run/said" -serial chardev:said \
		-drive "if=virtio,format=raw,file=$machine/disk.img,cache=unsafe,discard=unmap" \
		-netdev user,id=net -device virtio-net-pci,netdev=net,romfile= -device virtio-rng-pci "$@" \
		</dev/null >"$run/qemu.log" 2>&1 &
	pid=$!
	trap 'kill $pid' INT TERM HUP
	# Run `tail` in the background, because a signal interrupts `wait` but not a command in the foreground.
	tail -n +1 -f --pid=$pid "$run/said" | tr -d '\r' | sed -u '/^status [0-9]*$/d' &
	shown=$!
	wait $pid || status=$?
	trap - INT TERM HUP
	wait $shown
	tr -d '\r' <"$run/said" | sed -n 's/^status \([0-9]*\)$/\1/p' | tail -n 1 >"$run/status"
	[ ! -s "$run/said" ] || : >"$run/started"
	"$here/verdict" "$run" $status "$seconds"
}
