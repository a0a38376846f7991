// SPDX-License-Identifier: GPL-2.0

//! The number of instructions that mapping and unmapping a buffer takes, measured by kernel probes
//! (`kprobe_events`) that record when a function begins and when it returns.
//!
//! The probes are on functions of virtio that call the driver's functions, as Rust functions cannot
//! be probed. The instructions of the virtio functions themselves are known, and subtracted. The
//! cost of a probe is subtracted as well: this cost is higher but the same each time, and is
//! measured on a system call that does next to nothing. Times are those of the TSC, which counts
//! instructions in a machine that counts instructions.

use std::io;
use std::path::{Path, PathBuf};

use libc::c_long;
use vduse_selftests::lab::kernel::sysfs;

use crate::table::median;

/// A function with probes.
struct Function {
    name: &'static str,
    /// The number of the function's own instructions, excluding the driver's function. The number
    /// applies to what Debian's compiler makes of Linux 7.2; elsewhere there may be a few more or
    /// fewer, for both drivers.
    own: f64,
    /// Two figures that are recorded when the function begins, of the same kind in all functions,
    /// so that recording takes the same time.
    figures: [&'static str; 2],
    /// The index of the figure that is the number of bytes.
    bytes: usize,
}

/// The function that calls `map_page`.
const MAP: Function = Function {
    name: "virtqueue_map_page_attrs",
    own: 13.0,
    figures: ["%cx:u64", "+8(%di):u32"],
    bytes: 0,
};

/// The function that calls `unmap_page`, for what `struct vring_desc_extra` says.
const UNMAP: Function = Function {
    name: "vring_unmap_one_split",
    own: 29.0,
    figures: ["%cx:u64", "+8(%si):u32"],
    bytes: 1,
};

/// The system call that returns the highest priority.
const NOTHING: Function = Function {
    name: "__x64_sys_sched_get_priority_max",
    own: 10.0,
    figures: ["%cx:u64", "+8(%di):u32"],
    bytes: 0,
};

const TRACING: &str = "/sys/kernel/tracing";

/// The name of the events' group, and of the buffer that they are written to.
const GROUP: &str = "vduse_bench";

/// How many times the probes themselves are measured.
const NOTHINGS: usize = 100;

/// Empties a list in tracefs, by opening the file to be overwritten.
fn empty(path: &Path) -> io::Result<()> {
    std::fs::File::create(path).map(drop)
}

/// Probes that exist until this is dropped.
#[derive(Debug)]
pub struct Probes {
    buffer: PathBuf,
}

impl Probes {
    /// Sets the probes.
    pub fn new() -> Self {
        // Each probe must take as long as the others, whatever function it is on.
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
                // Writing adds the probe to the existing ones.
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

    /// Records what is mapped and unmapped by `work`.
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
        // Enabled probes cannot be removed, nor can a buffer in use. Leftovers are in the way of
        // the next probes, which fail with a message.
        let enable = format!("events/{GROUP}/enable");
        let _ = sysfs::write(&self.buffer.join(enable), "0");
        let _ = std::fs::remove_dir(&self.buffer);
        let _ = empty(&Path::new(TRACING).join("kprobe_events"));
    }
}

/// An event: its time, its name, and the recorded figures.
struct Event<'a> {
    time: f64,
    name: &'a str,
    figures: [u64; 2],
}

impl<'a> Event<'a> {
    /// Parses `TASK-PID [CPU] FLAGS TIME: NAME: (WHERE) f0=N f1=N`. The end of a call has no
    /// figures.
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

/// A call of a function.
#[derive(Debug)]
struct Call {
    name: String,
    figures: [u64; 2],
    took: f64,
}

/// The calls of the probed functions while something was done.
#[derive(Debug)]
pub struct Watched(Vec<Call>);

impl Watched {
    /// Parses a trace of one CPU, where calls do not overlap.
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
                // The end of a call that began before the trace.
                _ => {}
            }
        }
        Self(calls)
    }

    /// Returns how long a function's calls take, without the function's own instructions.
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

    /// Returns how many instructions it takes to map and to unmap `bytes` bytes, which happened
    /// `count` times.
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
