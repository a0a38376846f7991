// SPDX-License-Identifier: GPL-2.0

//! The kernel's record of events.

use std::path::{Path, PathBuf};

use crate::lab::{skip, sysfs};

const ROOT: &str = "/sys/kernel/tracing";

/// The group of the probes, and the name of the one that there is at a time.
const PROBE: &str = "vduse_selftests/entered";

/// The kernel's record of an event, switched off on drop.
#[derive(Debug)]
pub struct Trace {
    folder: PathBuf,
    is_probe: bool,
}

/// What is known of an event besides what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The CPU that it was on.
    pub cpu: usize,
    /// Whether interrupts were off.
    pub irqs_off: bool,
    /// Whether softirqs were, by name: interrupts that are off hold them back as well.
    pub softirqs_off: bool,
    /// Whether it was within a handler of interrupts.
    pub in_irq: bool,
}

impl Event {
    /// Reads `TASK-PID [CPU] FLAGS TIME: EVENT`. Its flags begin with `d` if interrupts are off, `b`
    /// if softirqs are, `D` if both are; the third is what is interrupted, `s` for a softirq.
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
    /// Records an event of a disk, as in `block/block_rq_complete`, and of no other disk. Ends the
    /// test where there is no such thing.
    #[track_caller]
    pub fn of_disk(event: &str, disk: &str) -> Self {
        let trace = Self {
            folder: Path::new(ROOT).join("events").join(event),
            is_probe: false,
        };
        let number = sysfs::read(&Path::new("/sys/block").join(disk).join("dev"));
        let number = number.expect("the disk's number");
        let (major, minor) = number.split_once(':').expect("two numbers");
        // As the kernel has it, which is not as it tells userspace.
        let dev =
            major.parse::<u32>().expect("a number") << 20 | minor.parse::<u32>().expect("a number");
        if sysfs::write(&trace.folder.join("filter"), &format!("dev == {dev}")).is_err() {
            skip("no such events here");
        }
        trace.enable();
        trace
    }

    /// Records each time that a function is entered, as in `virtio_vdpa:virtio_vdpa_config_cb`. Ends
    /// the test where that cannot be done without switching interrupts off.
    #[track_caller]
    pub fn of_function(function: &str) -> Self {
        let probe = format!("p:{PROBE} {function}");
        let events = Path::new(ROOT).join("kprobe_events");
        if !events.exists() {
            skip("no probes of functions here");
        }
        sysfs::write(&events, &probe).expect("a probe");
        let trace = Self {
            folder: Path::new(ROOT).join("events").join(PROBE),
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
        if sysfs::write(&self.folder.join("enable"), "1").is_err() {
            skip("no such events here");
        }
        sysfs::write(&Path::new(ROOT).join("tracing_on"), "1").expect("tracing");
        self.clear();
    }

    /// Forgets the events so far.
    pub fn clear(&self) {
        let _ = std::fs::File::create(Path::new(ROOT).join("trace"));
    }

    /// The events so far.
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
        let _ = sysfs::write(&self.folder.join("enable"), "0");
        let _ = sysfs::write(&self.folder.join("filter"), "0");
        self.clear();
        if self.is_probe {
            // It stays in the list of those that there are until it is told to go.
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
