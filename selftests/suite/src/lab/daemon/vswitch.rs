// SPDX-License-Identifier: GPL-2.0

//! Open vSwitch with DPDK, as Debian packages it: an unmodified daemon of network cards.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{kill_process, Pid, Signal};

use crate::lab::assert::timing::{soon, within};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::kernel::modules::tool;
use crate::lab::kernel::sysfs;
use crate::lab::run::report::skip;
use crate::lab::run::scratch::Scratch;

/// Path of the database server.
const DATABASE: &str = "/usr/sbin/ovsdb-server";
/// Path of the `ovs-vswitchd` that is linked with DPDK.
const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";

/// File that sets the number of huge pages of 2 MiB. The switch uses them as its memory.
const PAGES: &str = "/proc/sys/vm/nr_hugepages";
const PAGE_COUNT: &str = "220";

/// Time limit for the start of the switch, which includes the initialisation of DPDK.
const START: Duration = Duration::from_secs(60);

/// A switch with one bridge.
#[derive(Debug)]
pub struct Vswitch {
    database: Child,
    switch: Option<Child>,
    socket: String,
    run: Scratch,
    ports: Vec<TestDevice>,
}

impl Vswitch {
    /// Starts a switch. Skips the test if Open vSwitch is not installed or if there is not enough
    /// memory.
    #[track_caller]
    pub fn new() -> Self {
        if !Path::new(VSWITCHD).exists() {
            skip("Open vSwitch with DPDK is not installed");
        }
        sysfs::write(Path::new(PAGES), PAGE_COUNT).expect("reserving pages");
        if sysfs::read(Path::new(PAGES)).is_ok_and(|pages| pages != PAGE_COUNT) {
            skip("not enough memory for the switch");
        }
        for module in ["tun", "virtio_net"] {
            tool("modprobe", &[module]).expect("loading a module");
        }
        // The switch keeps files for vhost in this directory, and no option changes that.
        std::fs::create_dir_all("/run/openvswitch").expect("a directory");
        let run = Scratch::new();
        let path = |name: &str| run.path(name).to_string_lossy().into_owned();
        let socket = format!("unix:{}", path("db.sock"));
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        tool("ovsdb-tool", &["create", &path("conf.db"), schema]).expect("a database");
        let remote = format!("--remote=p{socket}");
        let database = Command::new(DATABASE)
            .args([&path("conf.db"), &remote, "--unixctl=none"])
            .stderr(Stdio::null())
            .spawn()
            .expect("starting the database");
        soon("the database listens", || run.path("db.sock").exists());
        let mut switch = Self {
            database,
            switch: None,
            socket,
            run,
            ports: Vec::new(),
        };
        switch.set(&["init"]);
        switch.set(&[
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            "other_config:dpdk-extra=--no-pci --iova-mode=va",
            "other_config:dpdk-socket-mem=256",
            // The thread that forwards packets occupies CPU 1, so DPDK's other threads run on CPU
            // 0.
            "other_config:pmd-cpu-mask=0x2",
            "other_config:dpdk-lcore-mask=0x1",
            "other_config:per-port-memory=true",
        ]);
        switch.start();
        switch.set_and_wait(&[
            "add-br",
            "br0",
            "--",
            "set",
            "bridge",
            "br0",
            "datapath_type=netdev",
        ]);
        switch
    }

    /// Runs `ovs-vsctl`. If `waits` is true, also waits until the switch has applied the change.
    #[track_caller]
    fn vsctl(&self, waits: bool, arguments: &[&str]) -> String {
        let mut command = Command::new("ovs-vsctl");
        command.args([&format!("--db={}", self.socket), "--timeout=120"]);
        if !waits {
            command.arg("--no-wait");
        }
        let output = command.args(arguments).output().expect("running ovs-vsctl");
        assert!(
            output.status.success(),
            "ovs-vsctl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[track_caller]
    fn set(&self, arguments: &[&str]) {
        self.vsctl(false, arguments);
    }

    #[track_caller]
    fn set_and_wait(&self, arguments: &[&str]) {
        self.vsctl(true, arguments);
    }

    /// Starts the process of the switch, which must not be running. Waits until DPDK is
    /// initialised.
    #[track_caller]
    pub fn start(&mut self) {
        let log = self.run.path("log").to_string_lossy().into_owned();
        let child = Command::new(VSWITCHD)
            .args([&self.socket, "--unixctl=none", &format!("--log-file={log}")])
            .args(["--verbose=console:off", "--verbose=syslog:off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.switch = Some(child.expect("starting the switch"));
        within(START, "the switch has initialised DPDK", || {
            self.vsctl(false, &["get", "Open_vSwitch", ".", "dpdk_initialized"]) == "true"
        });
    }

    /// Adds a port. The switch then creates a card with up to `pairs` queue pairs. Returns the name
    /// of the card's device.
    #[track_caller]
    pub fn add_port(&mut self, pairs: u16) -> String {
        let name = unique_name();
        let path = format!("options:vhost-server-path=/dev/vduse/{name}");
        let pairs = format!("options:vhost-max-queue-pairs={pairs}");
        self.set_and_wait(&[
            "add-port",
            "br0",
            &name,
            "--",
            "set",
            "Interface",
            &name,
            "type=dpdkvhostuserclient",
            &path,
            &pairs,
        ]);
        self.ports.push(TestDevice::adopt(&name));
        name
    }

    /// Sends a signal to the switch.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let switch = self.switch.as_ref().expect("a running switch");
        kill_process(Pid::from_child(switch), signal).expect("sending a signal");
    }

    /// Kills the switch, and waits until it has ended.
    pub fn kill(&mut self) {
        if let Some(mut switch) = self.switch.take() {
            let _ = switch.kill();
            let _ = switch.wait();
        }
    }

    /// Returns the log of the switch.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.run.path("log")).unwrap_or_default()
    }
}

impl Drop for Vswitch {
    fn drop(&mut self) {
        self.kill();
        let _ = self.database.kill();
        let _ = self.database.wait();
        let _ = sysfs::write(Path::new(PAGES), "0");
    }
}
