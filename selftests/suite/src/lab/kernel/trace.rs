// SPDX-License-Identifier: GPL-2.0

//! Kernel tracing.

use std::path::{Path, PathBuf};

use crate::lab::kernel::sysfs;
use crate::lab::run::report::skip;

const ROOT: &str = "/sys/kernel/tracing";

/// Group and name of the kprobe. Only one kprobe exists at a time.
const PROBE: &str = "vduse_selftests/entered";

/// A kernel event that is traced until this value is dropped.
#[derive(Debug)]
pub struct Trace {
    directory: PathBuf,
    is_probe: bool,
}

/// The context in which an event occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The CPU on which the event occurred.
    pub cpu: usize,
    /// Whether interrupts were disabled.
    pub irqs_off: bool,
    /// Whether softirqs were explicitly disabled. Disabled interrupts also keep softirqs from
    /// running.
    pub softirqs_off: bool,
    /// Whether the event occurred in an interrupt handler.
    pub in_irq: bool,
}

impl Event {
    /// Parses `TASK-PID [CPU] FLAGS TIME: EVENT`. The first flag is `d` if interrupts are disabled,
    /// `b` if softirqs are disabled, and `D` if both are. The third flag tells the context, for
    /// example `h` for an interrupt handler and `s` for a softirq.
    fn parse(line: &str) -> Option<Self> {
        let (cpu, rest) = line.split_once(" [")?.1.split_once("] ")?;
        let mut flags = rest.trim_start().chars();
        let off = flags.next()?;
        let context = flags.nth(1)?;
        Some(Self {
            cpu: cpu.parse().ok()?,
            irqs_off: matches!(off, 'd' | 'D'),
            softirqs_off: matches!(off, 'b' | 'D'),
            in_irq: matches!(context, 'h' | 'H' | 'z' | 'Z'),
        })
    }
}

impl Trace {
    /// Traces an event of one disk, such as `block/block_rq_complete`. Skips the test if the kernel
    /// has no such event.
    #[track_caller]
    pub fn of_disk(event: &str, disk: &str) -> Self {
        let trace = Self {
            directory: Path::new(ROOT).join("events").join(event),
            is_probe: false,
        };
        let number = sysfs::read(&Path::new("/sys/block").join(disk).join("dev"));
        let number = number.expect("the disk's number");
        let (major, minor) = number.split_once(':').expect("two numbers");
        // This is the kernel's own encoding of device numbers, which differs from the encoding in
        // userspace.
        let dev =
            major.parse::<u32>().expect("a number") << 20 | minor.parse::<u32>().expect("a number");
        if sysfs::write(&trace.directory.join("filter"), &format!("dev == {dev}")).is_err() {
            skip("no such events here");
        }
        trace.enable();
        trace
    }

    /// Traces the calls of a function, such as `virtio_vdpa:virtio_vdpa_config_cb`. Skips the test
    /// if the kernel has no kprobes, or if the kernel disables interrupts while a kprobe runs.
    #[track_caller]
    pub fn of_function(function: &str) -> Self {
        let probe = format!("p:{PROBE} {function}");
        let events = Path::new(ROOT).join("kprobe_events");
        if !events.exists() {
            skip("no probes of functions here");
        }
        sysfs::write(&events, &probe).expect("a probe");
        let trace = Self {
            directory: Path::new(ROOT).join("events").join(PROBE),
            is_probe: true,
        };
        trace.enable();
        let list = std::fs::read_to_string("/sys/kernel/debug/kprobes/list").expect("the probes");
        if !list.contains("[FTRACE]") {
            skip("probes switch interrupts off here");
        }
        trace
    }

    fn enable(&self) {
        if sysfs::write(&self.directory.join("enable"), "1").is_err() {
            skip("no such events here");
        }
        sysfs::write(&Path::new(ROOT).join("tracing_on"), "1").expect("tracing");
        self.clear();
    }

    /// Discards the events that were traced so far.
    pub fn clear(&self) {
        let _ = std::fs::File::create(Path::new(ROOT).join("trace"));
    }

    /// Returns the events that were traced since the last [`clear`](Self::clear).
    #[track_caller]
    pub fn events(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(Path::new(ROOT).join("trace")).expect("the trace");
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(Event::parse)
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = sysfs::write(&self.directory.join("enable"), "0");
        let _ = sysfs::write(&self.directory.join("filter"), "0");
        self.clear();
        if self.is_probe {
            // A kprobe exists until it is removed explicitly.
            let _ = std::fs::OpenOptions::new()
                .append(true)
                .open(Path::new(ROOT).join("kprobe_events"))
                .and_then(|mut file| {
                    std::io::Write::write_all(&mut file, format!("-:{PROBE}").as_bytes())
                });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read() {
        let line = "  vduse-disk-1234    [001] b..1.   12.345678: entered: (virtio_vdpa_config_cb+0x4/0x40)";
        let event = Event {
            cpu: 1,
            irqs_off: false,
            softirqs_off: true,
            in_irq: false,
        };
        assert_eq!(Event::parse(line), Some(event));
        let line = "  <idle>-0       [000] d.h1.   12.345678: block_rq_complete: 254,0 R ()";
        let event = Event {
            cpu: 0,
            irqs_off: true,
            softirqs_off: false,
            in_irq: true,
        };
        assert_eq!(Event::parse(line), Some(event));
        assert_eq!(Event::parse("# tracer: nop"), None);
    }
}
