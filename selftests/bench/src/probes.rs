// SPDX-License-Identifier: GPL-2.0

//! Kernel probes (`kprobe_events`) that measure how many instructions it takes to map and to unmap
//! a buffer. The probes record when a function begins and when it returns.
//!
//! Rust functions cannot be probed, so the probes are on the virtio functions that call the
//! driver's functions. The result is the time of a call, minus two constants: the number of the
//! virtio function's own instructions, which is known, and the cost of a probe. The cost of a probe
//! is larger than the result but always the same. This cost is measured on a system call that does
//! almost nothing. Times are read from the TSC, which counts instructions in the virtual machine of
//! `qemu-test/bench`.

use std::io;
use std::path::{Path, PathBuf};

use libc::c_long;
use vduse_selftests::lab::kernel::sysfs;

use crate::table::median;

/// A function with probes.
struct Function {
    name: &'static str,
    /// Number of the function's own instructions, without those of the driver's function. The
    /// number is for Linux 7.2 as Debian's compiler builds it. In other builds, the number can be
    /// slightly wrong, by the same amount for both drivers.
    own: f64,
    /// Two values that the probe at the function's start records. They have the same types for all
    /// functions, so that recording takes the same time.
    figures: [&'static str; 2],
    /// Index in `figures` of the buffer's length in bytes.
    bytes: usize,
}

/// The virtio function that calls the driver's `map_page`.
const MAP: Function = Function {
    name: "virtqueue_map_page_attrs",
    own: 13.0,
    figures: ["%cx:u64", "+8(%di):u32"],
    bytes: 0,
};

/// The virtio function that calls the driver's `unmap_page`. The second argument of the virtio
/// function, a `struct vring_desc_extra`, contains the buffer's length.
const UNMAP: Function = Function {
    name: "vring_unmap_one_split",
    own: 29.0,
    figures: ["%cx:u64", "+8(%si):u32"],
    bytes: 1,
};

/// A system call that returns the highest scheduling priority. It does almost nothing, so the time
/// of a call is mostly the cost of a probe.
const NOTHING: Function = Function {
    name: "__x64_sys_sched_get_priority_max",
    own: 10.0,
    figures: ["%cx:u64", "+8(%di):u32"],
    bytes: 0,
};

const TRACING: &str = "/sys/kernel/tracing";

/// Name of the probes' event group, and of the tracing instance that records their events.
const GROUP: &str = "vduse_bench";

/// Number of calls of [`NOTHING`] that measure the cost of a probe.
const NOTHINGS: usize = 100;

/// Empties a list in tracefs by opening its file with truncation.
fn empty(path: &Path) -> io::Result<()> {
    std::fs::File::create(path).map(drop)
}

/// The probes. Dropping a `Probes` removes them from the kernel.
#[derive(Debug)]
pub struct Probes {
    buffer: PathBuf,
}

impl Probes {
    /// Adds the probes to the kernel.
    pub fn new() -> Self {
        // All probes must have the same cost, whatever function they are on. So turn off the
        // kernel's optimisation of probes, which applies to some functions only.
        let optimization = Path::new("/proc/sys/debug/kprobes-optimization");
        sysfs::write(optimization, "0").expect("no optimised probes");
        let tracing = Path::new(TRACING);
        let buffer = tracing.join("instances").join(GROUP);
        std::fs::create_dir(&buffer).expect("a buffer for events");
        let probes = Self { buffer };
        for Function { name, figures, .. } in [MAP, UNMAP, NOTHING] {
            let [first, second] = figures;
            for probe in [
                format!("p:{GROUP}/{name} {name} f0={first} f1={second}"),
                format!("r:{GROUP}/{name}_end {name}"),
            ] {
                // Writing to this file adds the probe to the existing ones.
                sysfs::write(&tracing.join("kprobe_events"), &probe).expect("a probe");
            }
        }
        probes.set("trace_clock", "x86-tsc");
        probes.set("buffer_size_kb", "2048");
        probes.set("tracing_on", "0");
        probes.set(&format!("events/{GROUP}/enable"), "1");
        probes
    }

    fn set(&self, what: &str, value: &str) {
        sysfs::write(&self.buffer.join(what), value).expect("setting probes up");
    }

    /// Runs `work`. Returns the calls of the probed functions during that time.
    pub fn watch(&self, work: impl FnOnce()) -> Watched {
        empty(&self.buffer.join("trace")).expect("emptying a buffer");
        self.set("tracing_on", "1");
        work();
        for _ in 0..NOTHINGS {
            // SAFETY: The call takes a number and returns one.
            unsafe {
                libc::syscall(
                    libc::SYS_sched_get_priority_max,
                    c_long::from(libc::SCHED_FIFO),
                )
            };
        }
        self.set("tracing_on", "0");
        let trace = std::fs::read_to_string(self.buffer.join("trace")).expect("what was traced");
        Watched::read(&trace)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        // The kernel removes a probe only after the probe is disabled, and a tracing instance only
        // when the instance is not in use. If one of these steps fails, the next call of `new`
        // fails with a message.
        let enable = format!("events/{GROUP}/enable");
        let _ = sysfs::write(&self.buffer.join(enable), "0");
        let _ = std::fs::remove_dir(&self.buffer);
        let _ = empty(&Path::new(TRACING).join("kprobe_events"));
    }
}

/// An event in the trace: its time, its name, and the recorded values.
struct Event<'a> {
    time: f64,
    name: &'a str,
    figures: [u64; 2],
}

impl<'a> Event<'a> {
    /// Parses `TASK-PID [CPU] FLAGS TIME: NAME: (WHERE) f0=N f1=N`. An event for the return of a
    /// function has no values.
    fn read(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(": (")?;
        let (before, name) = before.rsplit_once(": ")?;
        let (_, time) = before.rsplit_once(' ')?;
        let figure = |key| {
            let (_, rest) = after.split_once(key)?;
            rest.split(' ').next()?.parse().ok()
        };
        Some(Self {
            time: time.parse().ok()?,
            name,
            figures: ["f0=", "f1="].map(|key| figure(key).unwrap_or(0)),
        })
    }
}

/// A call of a probed function.
#[derive(Debug)]
struct Call {
    name: String,
    figures: [u64; 2],
    took: f64,
}

/// The calls of the probed functions during [`Probes::watch`].
#[derive(Debug)]
pub struct Watched(Vec<Call>);

impl Watched {
    /// Parses the trace of a machine with one CPU, where calls do not overlap.
    fn read(trace: &str) -> Self {
        let mut calls = Vec::new();
        let mut begun: Option<Event<'_>> = None;
        for event in trace.lines().filter_map(Event::read) {
            match (event.name.strip_suffix("_end"), begun.take()) {
                (None, _) => begun = Some(event),
                (Some(name), Some(begin)) if begin.name == name => calls.push(Call {
                    name: name.to_owned(),
                    figures: begin.figures,
                    took: event.time - begin.time,
                }),
                // The call began before the trace, so its start is unknown.
                _ => {}
            }
        }
        Self(calls)
    }

    /// Selects the calls of `function` for which `wanted` returns true. Returns the median number
    /// of instructions of these calls, minus the function's own instructions. Panics if the number
    /// of selected calls is not `count`.
    fn of(&self, function: &Function, wanted: impl Fn(&Call) -> bool, count: usize) -> f64 {
        let calls = self.0.iter().filter(|call| call.name == function.name);
        let took: Vec<f64> = calls
            .filter(|call| wanted(call))
            .map(|call| call.took)
            .collect();
        assert_eq!(took.len(), count, "calls of {}", function.name);
        median(took).expect("calls") - function.own
    }

    fn each(&self, function: &Function, bytes: usize, count: usize) -> f64 {
        let fits = |call: &Call| call.figures[function.bytes] == bytes as u64;
        self.of(function, fits, count) - self.of(&NOTHING, |_| true, NOTHINGS)
    }

    /// Returns the number of instructions for mapping `bytes` bytes, and for unmapping them. The
    /// trace must contain `count` such calls of each function.
    pub fn map_and_unmap(&self, bytes: usize, count: usize) -> [f64; 2] {
        [&MAP, &UNMAP].map(|function| self.each(function, bytes, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_probes_take_is_taken_off() {
        let mut trace = "\
# entries-in-buffer/entries-written: 8/8   #P:1
 a: (b) c-87 [000] d..1. 1990: vring_unmap_one_split_end: (a+0x1/0x2 <- vring_unmap_one_split)
 a: b c-87 [000] d..1. 2000: virtqueue_map_page_attrs: (virtqueue_map_page_attrs+0x4/0x70) f0=512 f1=7
 a: b c-87 [000] d..1. 3300: virtqueue_map_page_attrs_end: (a+0x1/0x2 <- virtqueue_map_page_attrs)
 a: b c-87 [000] d..1. 3400: vring_unmap_one_split: (vring_unmap_one_split+0x4/0x70) f0=1 f1=512
 a: b c-87 [000] d..1. 4800: vring_unmap_one_split_end: (a+0x1/0x2 <- vring_unmap_one_split)
"
        .to_owned();
        for _ in 0..NOTHINGS {
            let name = NOTHING.name;
            trace += &format!(" a-1 [000] ..... 5000: {name}: (x) f0=1 f1=2\n");
            trace += &format!(" a-1 [000] ..... 6000: {name}_end: (x <- x)\n");
        }
        let [map, unmap] = Watched::read(&trace).map_and_unmap(512, 1);
        assert_eq!(map, 300.0 + NOTHING.own - MAP.own);
        assert_eq!(unmap, 400.0 + NOTHING.own - UNMAP.own);
    }
}
