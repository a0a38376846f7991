# SPDX-License-Identifier: GPL-2.0
#
# `make help` lists the targets. The file Kbuild says how the module itself is built.

export KVER FLAVOUR QEMU FAST VDUSE_RS_CACHE DEBIAN_MIRROR

# make and Kbuild treat blanks and colons as separators between paths.
ifneq ($(words $(CURDIR))$(findstring :,$(CURDIR)),1)
$(error The path of this checkout, $(CURDIR), has a blank or a colon in it, which the kernel's build system cannot \
	handle: move the checkout)
endif

DRIVER ?= rust
KERNEL ?= stock
TESTS ?=

# Options that are passed on to the kernel's build system.
KBUILD_OPTIONS := $(foreach v,V W C CLIPPY KCFLAGS KRUSTFLAGS VDUSE_RS_NAME,$(if $($(v)),$(v)=$($(v))))

ifdef KDIR
# Build against a kernel tree that has the Rust metadata, with the host's programs.
TOOLS := $(foreach v,LLVM CC RUSTC BINDGEN,$(if $(filter command% environment%,$(origin $(v))),$(v)=$($(v))))
KBUILD = $(TOOLS) ./scripts/check-kdir $(KDIR) && $(MAKE) -C $(KDIR) M=$(CURDIR) $(TOOLS) $(KBUILD_OPTIONS)
else
KBUILD = ./scripts/kbuild $(KBUILD_OPTIONS)
endif

all: modules

modules:
	@+$(KBUILD) modules

install modules_install:
	@./scripts/install $(KDIR)

deb:
	@./scripts/deb $(KDIR)

deb-dkms:
	@./scripts/deb --dkms

uninstall:
	@./scripts/install --remove

clean:
	@./scripts/clean

update:
	@./scripts/kernel --update >/dev/null

rust-analyzer:
	@+$(KBUILD) rust-analyzer
	@./scripts/rust-project $(KDIR)

fmt:
	@./scripts/lint --fix

lint:
	@./scripts/lint

check-unsafe:
	@./scripts/check-unsafe

# Our module for the stock kernel must be built before a guest starts. For the
# debug kernel, qemu-test/run builds the module (scripts/debug-module).
GUEST_MODULE := $(if $(filter rust-stock,$(DRIVER)-$(KERNEL)),modules)

demo: $(GUEST_MODULE)
	@./qemu-test/demo --driver $(DRIVER) --kernel $(KERNEL)

test: $(GUEST_MODULE)
	@./qemu-test/test --driver $(DRIVER) --kernel $(KERNEL) $(foreach s,$(SKIP),--skip '$(s)') $(TESTS)

test-quick: $(GUEST_MODULE)
	@./qemu-test/test --quick --driver $(DRIVER) --kernel $(KERNEL) $(TESTS)

test-core: $(GUEST_MODULE)
	@./qemu-test/test --core --driver $(DRIVER) --kernel $(KERNEL)

kernels:
	@./qemu-test/kernels $(if $(ALL),--all) $(KERNELS)

recipe:
	@./qemu-test/recipe

package:
	@./qemu-test/package

mutants:
	@./qemu-test/mutants $(MUTANTS)

soak:
	@./qemu-test/soak --driver $(DRIVER) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

soak-memory:
	@./qemu-test/soak --memory --driver $(DRIVER) $(if $(SECONDS),--seconds $(SECONDS))

shell: $(GUEST_MODULE)
	@./qemu-test/shell --driver $(DRIVER) --kernel $(KERNEL)

vng: $(if $(filter rust,$(DRIVER)),modules)
	@./qemu-test/vng --driver $(DRIVER) $(TESTS)

bench: modules
	@./qemu-test/bench $(if $(SMP),--smp $(SMP)) $(if $(CSV),--csv $(CSV)) $(ROWS)
ifeq ($(SMP)$(ROWS),)
	@echo && ./qemu-test/bench --daemons --rep-good
	@echo && ./qemu-test/bench --daemons --smp 2 --rounds 5
endif

help:
	@sed -n 's/^#: \?//p' $(firstword $(MAKEFILE_LIST))

#: make                   builds vduse_rs.ko for the kernel that runs, if it is one of Debian's that can be had, or else for
#:                        the newest of trixie-backports (as root)
#: make KDIR=DIR          builds it for the kernel tree in DIR, with this host's programs
#: make install           installs it, so that `modprobe vduse` loads it
#: make uninstall         takes that back
#: make deb-dkms          makes the Debian package vduse-rs-dkms in build/, which builds the module for each kernel
#: make deb               makes that one, and (as root, or with KDIR) vduse-rs-modules-RELEASE, with the module ready-made
#: make clean             removes what was built in the checkout
#: make update            looks for a newer kernel (otherwise the choice, once made, is kept)
#:
#: make demo              shows the driver at work, in a virtual machine
#: make test              runs all tests; TESTS='PATTERN...' those whose name contains one, SKIP='PATTERN...' not those
#: make test-quick        all but those that take minutes: no guest is booted in the virtual machine
#: make test-core         those that tell whether a kernel changed under the driver: its ABI, the bus, memory, disks
#: make kernels           for each kernel that can be had: is the module built, does it boot, do the tests of its core pass?
#:                        ALL=1 runs all tests, and those of the packages; KERNELS='PATTERN...' are the releases that begin so
#: make recipe            follows the README in a virtual machine with a fresh Debian: installs the kernel and the module,
#:                        and makes a disk
#: make package           tries the Debian packages in a virtual machine with a fresh Debian: reboots, upgrades, a purge
#: make soak              ten minutes of hostile userspace, under the debug kernel; SECONDS=N, SEED=N
#: make soak-memory       half an hour of swap and dirty pages beyond memory; SECONDS=N
#: make mutants           tests the tests: makes one mistake after the other in a copy of the driver, and looks
#:                        whether the tests that are to notice do; MUTANTS='PATTERN...' some of them
#: make shell             a shell in the virtual machine, with the driver loaded, to try things in
#: make vng               runs the guest tests under virtme-ng, on this host's root; TESTS as above
#: make bench             measures our driver against the in-tree one; ROWS='PATTERN...' some of the rows, SMP=2 how
#:                        it scales on two CPUs, CSV=FILE writes the figures there as well
#:
#: make lint              checks format, warnings, clippy, that driver/ has no unsafe, and that the crates can be published
#: make fmt               formats the Rust files
#: make rust-analyzer     writes rust-project.json for editors
#:
#: KVER=7.2.12            asks for a certain kernel (or a series, 7.2; or a whole release, 7.2.12+deb13-rt-amd64)
#: FLAVOUR=rt-amd64       of this flavour (amd64, cloud-amd64, rt-amd64)
#: DRIVER=c               demo, test, shell and vng use the in-tree driver (none: neither)
#: KERNEL=debug           demo, test and shell use a kernel that finds mistakes (KASAN, lockdep, kmemleak and more)
#: FAST=n                 builds the module without what knows x86-64 (bindings/fast.rs)
#: QEMU=backports         the newer QEMU, of trixie-backports, runs the virtual machine and is what there is in it
#: VDUSE_RS_CACHE=DIR     where what is expensive is kept (default ~/.cache/vduse_rs; may be deleted)
#: DEBIAN_MIRROR=URL      where Debian's packages come from (default: what this host's apt uses)
#: W=1 CLIPPY=1 V=1 ...   as in the kernel's build system

.PHONY: all modules install modules_install deb deb-dkms uninstall clean update rust-analyzer fmt lint check-unsafe demo test \
	test-quick test-core kernels recipe package mutants soak soak-memory shell vng bench help
