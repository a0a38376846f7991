// SPDX-License-Identifier: GPL-2.0

//! The messages that the kernel logged while a test ran.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

/// Maximum number of log lines that [`complaints`] returns.
const SHOWN: usize = 30;

/// A reader of the kernel's log.
#[derive(Debug)]
pub struct Log {
    file: File,
}

impl Log {
    /// Opens the log at its end, so that only later messages are read.
    pub fn open() -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file })
    }

    /// Opens the log at the oldest record that still exists.
    pub fn from_start() -> io::Result<Self> {
        let mut log = Self::open()?;
        log.file.seek(SeekFrom::Start(0))?;
        Ok(log)
    }

    /// Returns the lines that the kernel has logged since the last call.
    pub fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return lines,
                Ok(n) => lines.push(message(&String::from_utf8_lossy(&buffer[..n]))),
                // `EPIPE`: the kernel has overwritten the next record. The following read returns
                // the oldest record that still exists.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return lines,
            }
        }
    }
}

/// Returns the text of a record. In a record, the text comes after the fields and a semicolon, and
/// before the property lines.
fn message(record: &str) -> String {
    let text = record.split_once(';').map_or(record, |(_, text)| text);
    text.lines().next().unwrap_or_default().to_owned()
}

/// Texts by which the kernel reports that something is wrong.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "kernel BUG at",
    "Oops",
    "Kernel panic",
    "Call Trace:",
    "general protection fault",
    "Unable to handle kernel",
    "rust_kernel:",
    "panicked at",
    "soft lockup",
    "hard LOCKUP",
    "detected stall",
    "self-detected stall",
    "blocked for more than",
    "KASAN",
    "UBSAN",
    "KFENCE",
    "refcount_t:",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "invalid wait context",
    "scheduling while atomic",
    "sleeping function called",
    "list_add corruption",
    "list_del corruption",
    "Bad page state",
    "cannot create duplicate filename",
    "kmemleak:",
];

/// Returns the first complaint in `lines` and the lines after it, `SHOWN` lines at most. Returns
/// `None` if there is no complaint.
pub fn complaints(lines: &[String]) -> Option<&[String]> {
    let first = (0..lines.len()).find(|&at| {
        let is_complaint = |complaint: &&str| lines[at].contains(*complaint);
        COMPLAINTS.iter().any(is_complaint) && !is_of_an_awake_task(lines, at)
    })?;
    Some(&lines[first..lines.len().min(first + SHOWN)])
}

/// Returns whether the line at index `at` starts the stack trace of a task that could not be frozen
/// for a system suspend. Such a trace is not a complaint.
fn is_of_an_awake_task(lines: &[String], at: usize) -> bool {
    let (before, line) = (&lines[..at], &lines[at]);
    let refuses = |line: &String| line.contains("tasks refusing to freeze");
    line.contains("Call Trace:")
        && before.last().is_some_and(|line| line.starts_with("task:"))
        && before.iter().any(refuses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn a_record_is_its_text_without_fields_and_properties() {
        assert_eq!(
            message("6,339,5140900,-;NET: Registered\n SUBSYSTEM=acpi\n"),
            "NET: Registered"
        );
    }

    #[test]
    fn a_complaint_is_shown_with_what_follows() {
        let log = lines(&[
            "fine",
            "WARNING: CPU: 0 PID: 1 at x.c:1",
            "Modules linked in:",
        ]);
        assert_eq!(complaints(&log).unwrap(), &log[1..]);
    }

    #[test]
    fn the_stack_of_a_task_that_cannot_be_frozen_is_no_complaint() {
        let log = lines(&[
            "Freezing user space processes failed after 1.003 seconds (1 tasks refusing to freeze, wq_busy=0):",
            "task:exe             state:D stack:0     pid:250   tgid:245   ppid:243",
            "Call Trace:",
        ]);
        assert_eq!(complaints(&log), None);
        assert!(complaints(&log[1..]).is_some());
    }

    #[test]
    fn talk_is_no_complaint() {
        let log = lines(&[
            "virtio_blk virtio3: [vda] 131072 512-byte logical blocks",
            "vda: p1",
        ]);
        assert_eq!(complaints(&log), None);
    }
}
