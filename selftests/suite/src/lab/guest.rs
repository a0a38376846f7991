// SPDX-License-Identifier: GPL-2.0

//! A guest inside the machine that the tests run in: QEMU, as it is packaged, with the stock kernel
//! and an initrd that does what it is told on the serial console (see `qemu-test/guest/nested`).
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
//! A guest that is dropped is killed. If the test has failed by then, all that QEMU said is shown:
//! so keep it until the last of the test's assertions.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::cpu::run_on;
use crate::lab::limit::Limit;
use crate::lab::qmp::Qmp;
use crate::lab::scratch::Scratch;
use crate::lab::{note, skip};
use crate::modules;
use crate::runner::environment;

/// How long a guest may take to come up.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// How long a line may take in the guest, and turning it off.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// What the guest says, on a line of its own, when it takes lines.
const READY: &str = "@ready\n";

/// What a line's answer ends with; its status follows.
const DONE: &str = "\n@done ";

/// A guest to be started.
#[derive(Debug)]
pub struct Setup {
    folder: PathBuf,
    arguments: Vec<OsString>,
    /// How much memory it has, in MiB.
    pub memory: u32,
}

impl Setup {
    /// A guest of 256 MiB without any device but its console. Ends the test where there is nothing
    /// to boot.
    ///
    /// It has one CPU: where KVM itself is emulated (SVM in QEMU 10's TCG), a second one brings down
    /// the kernel outside in one boot of five, in the handler of a page fault with the guest's GS. And
    /// it stays on one CPU of the machine outside: one guest of fifty that did not ended of itself.
    pub fn new() -> Self {
        let Some(folder) = std::env::var_os(environment::GUEST) else {
            skip("there is no guest to boot: --guest DIR names what qemu-test/nested makes");
        };
        Self {
            folder: folder.into(),
            arguments: Vec::new(),
            memory: 256,
        }
    }

    /// Adds arguments for QEMU: devices, `-trace`, `-incoming`.
    pub fn arguments<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        let more = arguments.into_iter().map(|s| s.as_ref().to_owned());
        self.arguments.extend(more);
        self
    }

    /// Starts the guest, and waits until it can be told what to do.
    #[track_caller]
    pub fn boot(self) -> Guest {
        let begin = Instant::now();
        let mut guest = self.start();
        guest.wait_for(READY.as_bytes(), BOOT_LIMIT, "the guest comes up");
        let took = begin.elapsed().as_secs_f64();
        note(format_args!("the guest came up in {took:.1} s"));
        guest
    }

    /// Starts QEMU, and does not wait: for a guest that arrives by migration.
    #[track_caller]
    pub fn start(self) -> Guest {
        let scratch = Scratch::new();
        let socket = scratch.path("qmp");
        let command_line = std::fs::read_to_string(self.folder.join("cmdline"))
            .expect("the guest's kernel parameters");
        let mut command = Command::new("qemu-system-x86_64");
        command
            // qboot, as SeaBIOS would start the devices before the guest does. Devices of vDPA want
            // memory that can be shared.
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
            .arg(self.folder.join("vmlinux"))
            .arg("-initrd")
            .arg(self.folder.join("initrd"))
            .args(["-append", command_line.trim_end()])
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Emulated KVM is not to be moved to another CPU.
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

/// How QEMU is to run the guest: with KVM, if the machine has it. Even a machine that is emulated
/// has: the extensions that KVM needs are emulated as well, and the guest comes up several times
/// as fast as when it is emulated inside of what is emulated.
fn accelerator() -> &'static str {
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
    /// The serial console, and QEMU's own standard output.
    console: Said,
    errors: Said,
    /// How much of the console was waited for.
    read: usize,
    qmp: Option<Qmp>,
    socket: PathBuf,
    _scratch: Scratch,
}

impl Guest {
    /// Has the guest's shell evaluate a line. Returns the line's status and what it printed, errors
    /// as well.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> (i32, String) {
        self.run_within(RUN_LIMIT, line)
    }

    /// As [`run`](Self::run), with another time limit.
    #[track_caller]
    pub fn run_within(&mut self, limit: Duration, line: &str) -> (i32, String) {
        self.send(line);
        let output = self.wait_for(DONE.as_bytes(), limit, line);
        let status = self.wait_for(b"\n", limit, line);
        (status.parse().expect("a status"), output)
    }

    /// Has the guest's shell evaluate a line, which must succeed. Returns what it printed.
    #[track_caller]
    pub fn ok(&mut self, line: &str) -> String {
        let (status, output) = self.run(line);
        assert_eq!(status, 0, "{line}: {output}");
        output
    }

    /// Gives the guest's shell a line, and does not wait.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        assert!(!line.contains('\n'), "several lines have several answers");
        if let Err(error) = writeln!(self.input, "{line}") {
            panic!("{line}: the guest is not there any more: {error}");
        }
    }

    /// The process of QEMU.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Moves the guest to a QEMU that was started with `-incoming defer`, and ends this one. The
    /// guest runs there when this returns.
    #[track_caller]
    pub fn migrate_to(mut self, there: &mut Self) {
        let uri = json!({ "uri": format!("unix:{}", there.socket.with_extension("in").display()) });
        there.qmp().execute("migrate-incoming", uri.clone());
        self.qmp().execute("migrate", uri);
        let mut limit = Limit::new(RUN_LIMIT);
        loop {
            let state = self.qmp().execute("query-migrate", json!({}));
            match state["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => panic!("{state}"),
                _ => assert!(!limit.is_over(), "it does not end: {state}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        there.qmp().wait_for("RESUME", RUN_LIMIT);
        self.qmp().execute("quit", json!({}));
        self.wait_for_end();
    }

    /// The guest's monitor.
    #[track_caller]
    pub fn qmp(&mut self) -> &mut Qmp {
        self.qmp.get_or_insert_with(|| Qmp::connect(&self.socket))
    }

    /// Has the guest turn itself off, and waits until QEMU has ended well.
    #[track_caller]
    pub fn power_off(&mut self) {
        self.qmp();
        self.send("poweroff -f");
        let event = self.qmp().wait_for("SHUTDOWN", RUN_LIMIT);
        assert_eq!(event["data"]["reason"], "guest-shutdown", "{event}");
        self.wait_for_end();
    }

    /// Waits until QEMU ends by itself, which must be well, and not because the guest crashed.
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

    /// Kills QEMU, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// All that QEMU said so far, the guest's console with it.
    pub fn said(&self) -> String {
        format!(
            "-- the guest's console and QEMU's standard output:\n{}\n-- QEMU's standard error:\n{}",
            self.console.text(),
            self.errors.text()
        )
    }

    /// Waits until the console says something, and returns what it says before that.
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
            // The rest is on its way through the threads.
            for said in [&self.console, &self.errors] {
                said.wait(Duration::from_secs(5), |said| said.ended.then_some(()));
            }
            eprintln!("{}", self.said());
        }
    }
}

/// What comes out of a pipe, collected by a thread.
#[derive(Debug, Default)]
struct Said(Arc<(Mutex<Text>, Condvar)>);

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    /// There will be no more.
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

    /// Waits until there is what `look` looks for; `None` if there is not within the limit.
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
