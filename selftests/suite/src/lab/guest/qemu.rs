// SPDX-License-Identifier: GPL-2.0

//! A guest inside the machine in which the tests run. QEMU comes from the distribution. The guest
//! has the stock kernel, and an initrd that executes lines from the serial console (see
//! `qemu-test/guest/nested`).
//!
//! ```text
//! let mut guest = Setup::new()
//!     .arguments(["-device", "vhost-vdpa-device-pci,vhostdev=/dev/vhost-vdpa-0"])
//!     .boot();
//! guest.ok("modprobe virtio_blk");
//! let (status, output) = guest.run("cat /proc/partitions");
//! guest.power_off();
//! ```
//!
//! A guest is killed on drop. If the test has failed by then, all output of QEMU is printed. So
//! keep the guest until the last assertion of the test.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::environment;
use crate::lab::assert::limit::Limit;
use crate::lab::guest::qmp::Qmp;
use crate::lab::kernel::cpu::run_on;
use crate::lab::kernel::modules;
use crate::lab::run::report::{note, skip};
use crate::lab::run::scratch::Scratch;
use crate::lab::run::settings::setting;

/// Time limit for a guest's boot.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// Time limit for a line in the guest's shell, and for turning the guest off.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// Line that the guest prints when it accepts input.
const READY: &str = "@ready\n";

/// Text that the guest prints after the output of a shell line. The exit status of the line follows
/// this text.
const DONE: &str = "\n@done ";

/// Configuration of a guest.
#[derive(Debug)]
pub struct Setup {
    directory: PathBuf,
    arguments: Vec<OsString>,
    /// Amount of memory in MiB.
    pub memory: u32,
}

impl Setup {
    /// Creates the configuration of a guest with 256 MiB and no devices except its console. Skips
    /// the test if the runner was started without `--guest`.
    ///
    /// The guest has only one CPU. If KVM itself is emulated (SVM in the TCG of QEMU 10), a second
    /// CPU crashes the outer kernel in one boot of five, because a page fault handler runs with the
    /// guest's GS. In addition, the guest stays on one CPU of the outer machine, because otherwise
    /// one guest of fifty ended unexpectedly.
    pub fn new() -> Self {
        let Some(directory) = std::env::var_os(environment::GUEST) else {
            skip("there is no guest to boot: --guest DIR names what qemu-test/nested makes");
        };
        Self {
            directory: directory.into(),
            arguments: Vec::new(),
            memory: 256,
        }
    }

    /// Adds arguments for QEMU, for example devices, `-trace` or `-incoming`.
    pub fn arguments<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        let more = arguments.into_iter().map(|s| s.as_ref().to_owned());
        self.arguments.extend(more);
        self
    }

    /// Starts the guest and waits until its shell accepts commands.
    #[track_caller]
    pub fn boot(self) -> Guest {
        let begin = Instant::now();
        let mut guest = self.start();
        guest.wait_for(READY.as_bytes(), BOOT_LIMIT, "the guest comes up");
        let took = begin.elapsed().as_secs_f64();
        note(format_args!("the guest came up in {took:.1} s"));
        guest
    }

    /// Starts QEMU and returns at once, for a guest that arrives by migration and therefore does
    /// not boot.
    #[track_caller]
    pub fn start(self) -> Guest {
        let scratch = Scratch::new();
        let socket = scratch.path("qmp");
        let command_line = std::fs::read_to_string(self.directory.join("cmdline"))
            .expect("the guest's kernel parameters");
        let mut command = Command::new("qemu-system-x86_64");
        command
            // The firmware is qboot, because SeaBIOS would start the devices before the guest does.
            // vDPA devices need shared memory.
            .args([
                "-machine",
                "q35,memory-backend=memory",
                "-bios",
                "qboot.rom",
            ])
            .args(["-accel", accelerator(), "-cpu", "max"])
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=memory,size={}M,share=on",
                self.memory
            ))
            .args(["-m", &format!("{}M", self.memory)])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none"])
            .args(["-chardev", "stdio,id=console,signal=off"])
            .args(["-serial", "chardev:console"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-kernel")
            .arg(self.directory.join("vmlinux"))
            .arg("-initrd")
            .arg(self.directory.join("initrd"))
            .args(["-append", command_line.trim_end()])
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // If KVM is emulated, a guest must stay on one CPU (see `Setup::new`).
        let spawn = || {
            run_on(1);
            command.spawn()
        };
        let child = std::thread::scope(|scope| scope.spawn(spawn).join());
        let mut child = child.expect("a thread").expect("starting QEMU");
        Guest {
            input: child.stdin.take().expect("a pipe"),
            console: Said::by(child.stdout.take().expect("a pipe")),
            errors: Said::by(child.stderr.take().expect("a pipe")),
            read: 0,
            child,
            qmp: None,
            socket,
            _scratch: scratch,
        }
    }
}

/// Returns QEMU's accelerator, which is KVM if the machine supports it and the options allow it. An
/// emulated machine supports KVM as well, because QEMU also emulates the CPU extensions that KVM
/// needs. The guest then boots several times as fast as with nested emulation.
fn accelerator() -> &'static str {
    if setting(environment::WITHOUT_KVM).is_some() {
        return "tcg";
    }
    let vendors = ["kvm_amd", "kvm_intel"];
    let there = Path::new("/dev/kvm").exists()
        || vendors
            .iter()
            .any(|m| modules::tool("modprobe", &[m]).is_ok());
    if there {
        "kvm"
    } else {
        "tcg"
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: ChildStdin,
    /// The output of the guest's serial console and of QEMU's standard output.
    console: Said,
    errors: Said,
    /// Number of console bytes that earlier calls of `wait_for` have consumed.
    read: usize,
    qmp: Option<Qmp>,
    socket: PathBuf,
    _scratch: Scratch,
}

impl Guest {
    /// Evaluates a line in the guest's shell. Returns the line's exit status and its output, which
    /// includes error messages.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> (i32, String) {
        self.run_within(RUN_LIMIT, line)
    }

    /// Variant of [`run`](Self::run) with the time limit `limit`.
    #[track_caller]
    pub fn run_within(&mut self, limit: Duration, line: &str) -> (i32, String) {
        self.send(line);
        let output = self.wait_for(DONE.as_bytes(), limit, line);
        let status = self.wait_for(b"\n", limit, line);
        (status.parse().expect("a status"), output)
    }

    /// Evaluates a line in the guest's shell. Panics if the line fails. Returns the line's output.
    #[track_caller]
    pub fn ok(&mut self, line: &str) -> String {
        let (status, output) = self.run(line);
        assert_eq!(status, 0, "{line}: {output}");
        output
    }

    /// Sends a line to the guest's shell and does not wait.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        assert!(!line.contains('\n'), "several lines have several answers");
        if let Err(error) = writeln!(self.input, "{line}") {
            panic!("{line}: the guest is not there any more: {error}");
        }
    }

    /// Returns the process ID of QEMU.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Migrates the guest to the QEMU `there`, which was started with `-incoming defer`. Then ends
    /// the QEMU from which the guest has migrated. Returns the downtime that QEMU has measured,
    /// which is the time during which the guest ran in neither QEMU.
    #[track_caller]
    pub fn migrate_to(mut self, there: &mut Self) -> Duration {
        let uri = json!({ "uri": format!("unix:{}", there.socket.with_extension("in").display()) });
        there.qmp().execute("migrate-incoming", uri.clone());
        self.qmp().execute("migrate", uri);
        let mut limit = Limit::new(RUN_LIMIT);
        let downtime = loop {
            let state = self.qmp().execute("query-migrate", json!({}));
            match state["status"].as_str() {
                Some("completed") => break state["downtime"].as_u64().expect("a time in ms"),
                Some("failed" | "cancelled") => panic!("{state}"),
                _ => assert!(!limit.is_over(), "it does not end: {state}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        there.qmp().wait_for("RESUME", RUN_LIMIT);
        self.qmp().execute("quit", json!({}));
        self.wait_for_end();
        Duration::from_millis(downtime)
    }

    /// Returns the connection to QEMU's monitor. The first call establishes the connection.
    #[track_caller]
    pub fn qmp(&mut self) -> &mut Qmp {
        self.qmp.get_or_insert_with(|| Qmp::connect(&self.socket))
    }

    /// Turns the guest off and waits until QEMU has ended successfully.
    #[track_caller]
    pub fn power_off(&mut self) {
        self.qmp();
        self.send("poweroff -f");
        let event = self.qmp().wait_for("SHUTDOWN", RUN_LIMIT);
        assert_eq!(event["data"]["reason"], "guest-shutdown", "{event}");
        self.wait_for_end();
    }

    /// Waits until QEMU ends by itself. Panics if QEMU fails or if the guest's kernel has crashed.
    #[track_caller]
    pub fn wait_for_end(&mut self) {
        let mut limit = Limit::new(RUN_LIMIT);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waiting for QEMU") {
                break status;
            }
            assert!(!limit.is_over(), "the guest does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "QEMU ended: {status}");
        self.console
            .wait(RUN_LIMIT, |said| said.ended.then_some(()));
        let crashed = self.console.text().contains("Kernel panic");
        assert!(!crashed, "the guest crashed");
    }

    /// Kills QEMU and waits until it has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns all output of QEMU so far, which includes the guest's console.
    pub fn said(&self) -> String {
        format!(
            "-- the guest's console and QEMU's standard output:\n{}\n-- QEMU's standard error:\n{}",
            self.console.text(),
            self.errors.text()
        )
    }

    /// Waits for the text `what` on the console. Returns the console's output before that text.
    #[track_caller]
    fn wait_for(&mut self, what: &[u8], limit: Duration, why: &str) -> String {
        let from = self.read;
        let found = self.console.wait(limit, |said| {
            let new = &said.bytes[from..];
            let at = new.windows(what.len()).position(|part| part == what);
            match at {
                Some(at) => Some(Ok(at)),
                None => said.ended.then_some(Err(())),
            }
        });
        match found {
            Some(Ok(at)) => {
                self.read = from + at + what.len();
                self.console.part(from..from + at)
            }
            Some(Err(())) => panic!("QEMU ended before: {why}"),
            None => panic!("not within {limit:?}: {why}"),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            // The reader threads may still be handling the last output.
            for said in [&self.console, &self.errors] {
                said.wait(Duration::from_secs(5), |said| said.ended.then_some(()));
            }
            eprintln!("{}", self.said());
        }
    }
}

/// Output from a pipe, which a thread collects.
#[derive(Debug, Default)]
struct Said(Arc<(Mutex<Text>, Condvar)>);

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    /// Whether the output has ended.
    ended: bool,
}

impl Said {
    fn by(mut pipe: impl Read + Send + 'static) -> Self {
        let said = Self::default();
        let theirs = Self(said.0.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = match pipe.read(&mut buffer) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => 0,
                };
                let mut text = theirs.lock();
                text.bytes.extend_from_slice(&buffer[..count]);
                text.ended = count == 0;
                theirs.0 .1.notify_all();
                if text.ended {
                    return;
                }
            }
        });
        said
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        self.0 .0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    fn part(&self, range: std::ops::Range<usize>) -> String {
        String::from_utf8_lossy(&self.lock().bytes[range]).into_owned()
    }

    /// Waits until `look` returns a value. Returns that value, or `None` at the time limit.
    fn wait<T>(&self, limit: Duration, mut look: impl FnMut(&Text) -> Option<T>) -> Option<T> {
        let mut running = Limit::new(limit);
        let mut text = self.lock();
        loop {
            if let Some(found) = look(&text) {
                return Some(found);
            }
            if running.is_over() {
                return None;
            }
            (text, _) = self
                .0
                 .1
                .wait_timeout(text, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
