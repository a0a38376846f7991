// SPDX-License-Identifier: GPL-2.0

//! Child processes that have a time limit and leave no descendants.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::pipe::{pipe_with, PipeFlags};
use rustix::process::{kill_process, kill_process_group, wait, Pid, Signal, WaitOptions};

use crate::lab::assert::limit::Limit;

/// How a process ended.
#[derive(Debug)]
pub enum End {
    /// The process exited or was killed by a signal.
    Ended(ExitStatus),
    /// The process was killed at its time limit.
    TimedOut,
    /// The process was killed at its time limit but has not ended. The text has the kernel stacks
    /// of its threads.
    Stuck(String),
}

/// A process that has ended or is stuck, and its output.
#[derive(Debug)]
pub struct Finished {
    /// How the process ended.
    pub end: End,
    /// What the process wrote to standard output and standard error.
    pub output: String,
    /// The time from the start of the process to its end.
    pub took: Duration,
}

impl Finished {
    /// Describes how the process ended. Returns `None` if its exit status is 0.
    pub fn complaint(&self) -> Option<String> {
        match &self.end {
            End::Ended(status) if status.success() => None,
            End::Ended(status) => Some(match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with exit status {code}"),
                (None, signal) => format!("ended by signal {}", signal.unwrap_or(0)),
            }),
            End::TimedOut => Some(format!("timed out after {:.1}s", self.took.as_secs_f64())),
            End::Stuck(stack) => Some(format!(
                "timed out after {:.1}s and cannot be killed:\n{stack}",
                self.took.as_secs_f64()
            )),
        }
    }
}

/// Maximum time that a killed process may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Maximum number of bytes of a process's output that [`run`] keeps.
const KEPT: usize = 64 << 10;

/// Runs a command with a time limit and collects its output. On a slow machine, [`Limit`] extends
/// the time limit.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<Finished> {
    let begin = Instant::now();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut reader = File::from(reader);
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let mut child = command.spawn()?;
    // Closes the write ends of the pipe that `command` still holds. The reader then sees
    // end-of-file once all processes that inherited the pipe have ended.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let output = Arc::new(Mutex::new(Vec::new()));
    let collected = output.clone();
    // The thread is not joined, because a process that cannot be killed keeps the pipe open
    // forever.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            let mut output = collected.lock().unwrap_or_else(PoisonError::into_inner);
            let room = KEPT.saturating_sub(output.len());
            output.extend_from_slice(&buffer[..n.min(room)]);
        }
    });

    let end = end_of(&mut child, limit)?;
    let took = begin.elapsed();
    reap_children(GRACE);
    // The reader thread may still be handling the last output.
    std::thread::sleep(Duration::from_millis(5));
    let output = output.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Finished {
        end,
        output: String::from_utf8_lossy(&output).into_owned(),
        took,
    })
}

fn end_of(child: &mut Child, limit: Duration) -> io::Result<End> {
    if let Some(status) = wait_for(child, limit)? {
        return Ok(End::Ended(status));
    }
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    Ok(match wait_for(child, GRACE)? {
        Some(_) => End::TimedOut,
        None => End::Stuck(stacks(child.id())),
    })
}

fn wait_for(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let mut running = Limit::new(limit);
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if running.is_over() {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Returns the kernel stacks of a process's threads.
pub fn stacks(pid: u32) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return String::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("stack")).ok())
        .collect::<Vec<_>>()
        .join("--\n")
}

/// Makes this process a child subreaper: if the parent of a descendant ends, the kernel makes this
/// process the new parent of the descendant.
pub fn adopt_orphans() {
    // If this fails, init becomes the parent of orphans. They may then outlive the test, which is
    // untidy but harmless.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Kills all children of this process and waits until they have ended, but at most for `limit`.
/// Returns the process IDs of the children that still exist.
pub fn reap_children(limit: Duration) -> Vec<u32> {
    let mut running = Limit::new(limit);
    loop {
        // `wait` reaps children in any process group. `waitpid(None)` would reap only those in the
        // group of this process.
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let children = children();
        if children.is_empty() || running.is_over() {
            return children;
        }
        for child in children {
            if let Some(pid) = Pid::from_raw(child as i32) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn children() -> Vec<u32> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // All cases are in one test, because `reap_children` would kill the children of parallel tests.
    #[test]
    fn processes_end_in_each_way() {
        let shell = |line: &str, seconds| {
            let mut command = Command::new("sh");
            command.args(["-c", line]);
            run(&mut command, Duration::from_secs(seconds)).unwrap()
        };
        let fine = shell("echo out; echo err >&2", 10);
        assert_eq!(fine.complaint(), None);
        assert_eq!(fine.output, "out\nerr\n");
        let failed = shell("exit 3", 10);
        assert_eq!(failed.complaint().unwrap(), "ended with exit status 3");
        let killed = shell("kill -SEGV $$", 10);
        assert_eq!(killed.complaint().unwrap(), "ended by signal 11");
        let slow = shell("echo begun; sleep 100", 1);
        assert!(matches!(slow.end, End::TimedOut));
        assert_eq!(slow.output, "begun\n");
        assert!(slow.took < Duration::from_secs(5));

        // `run` reaps orphans in any process group.
        adopt_orphans();
        shell("setsid true & setsid sleep 100 & exit", 10);
        assert!(children().is_empty());
    }
}
