// SPDX-License-Identifier: GPL-2.0

//! The supervisor, which starts the actors, watches them, kills some, and removes their devices.

use std::fs::File;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vdpa_netlink::Vdpa;
use vduse::Control;

use crate::cleanup;
use crate::fuzz::actor::{Actor, DEVICES, THREADS};
use crate::fuzz::actors::{ACTORS, RECORDS};
use crate::fuzz::records::{Records, Wait, FILE};
use crate::fuzz::{controller, nodes};
use crate::lab::assert::limit::{Limit, Pace};
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::within;
use crate::lab::daemon::refusing::RefusingDaemon;
use crate::lab::kernel::sysfs;
use crate::lab::run::report::note;
use crate::lab::run::scratch::Scratch;
use crate::process::{self, stacks};

/// Parameters of a run of the fuzzer.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Duration of the run.
    pub time: Duration,
    /// Name prefixes that select the actors. If empty, all actors take part.
    pub actors: Vec<String>,
    /// Whether each call is written to the kernel's log.
    pub trace: bool,
    /// Factor by which time limits are multiplied.
    pub patience: u32,
}

/// An actor's process.
struct Running {
    number: usize,
    child: Child,
    /// For each thread, the value of its tick counter at the last check, and the time at which a
    /// check last found that the value had changed. Each begin and end of a call is a tick.
    seen: [(u64, Instant); THREADS],
}

impl Running {
    fn name(&self) -> &'static str {
        ACTORS[self.number].0
    }
}

struct Supervisor<'a> {
    plan: &'a Plan,
    scratch: Scratch,
    records: Arc<Records>,
    running: Vec<Running>,
    killed: u32,
    bus_errors: u32,
    /// The measured speed of the machine.
    pace: Pace,
}

/// Runs the actors. Panics if one of them fails, or if a device cannot be removed afterwards.
#[track_caller]
pub fn run(plan: &Plan) {
    let scratch = Scratch::new();
    let records = Records::open(&scratch.path(FILE), RECORDS).expect("the records");
    let mut supervisor = Supervisor {
        plan,
        scratch,
        records: Arc::new(records),
        running: Vec::new(),
        killed: 0,
        bus_errors: 0,
        pace: Pace::new(),
    };
    // The devices are removed even if the run has failed.
    let run = catch_unwind(AssertUnwindSafe(|| supervisor.supervise()));
    let end = catch_unwind(AssertUnwindSafe(|| supervisor.take_down()));
    supervisor.report();
    if let Err(panic) = run.and(end) {
        resume_unwind(panic);
    }
}

impl Supervisor<'_> {
    fn takes_part(&self, name: &str) -> bool {
        let actors = &self.plan.actors;
        actors.is_empty()
            || actors
                .iter()
                .any(|prefix| name.starts_with(prefix.as_str()))
    }

    #[track_caller]
    fn start(&mut self, number: usize) {
        let (name, _) = ACTORS[number];
        let log = File::create(self.scratch.path(&format!("{name}.log"))).expect("a log");
        let child = Command::new("/proc/self/exe")
            .args(["--helper", "fuzz", &number.to_string()])
            .arg(self.plan.seed.to_string())
            .arg(if self.plan.trace { "trace" } else { "quiet" })
            .arg(self.scratch.path(""))
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("starting an actor");
        let now = Instant::now();
        self.running.push(Running {
            number,
            child,
            seen: [(0, now); THREADS],
        });
    }

    #[track_caller]
    fn supervise(&mut self) {
        // Creates all devices at the start, so that a run with a single actor has devices as well.
        let mut actor = self.own_actor();
        actor.live();
        for name in DEVICES {
            controller::create(&mut actor, name);
            nodes::patience(&mut actor, name);
        }
        for (number, (name, _)) in ACTORS.iter().enumerate() {
            if self.takes_part(name) {
                self.start(number);
            }
        }
        let mut dice = Random::new(self.plan.seed);
        let end = Instant::now() + self.plan.time;
        let mut next_kill = Instant::now();
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            self.replace_the_dead();
            self.watch();
            if Instant::now() >= next_kill {
                let victim = dice.below(ACTORS.len() as u64) as usize;
                self.kill(victim);
                let pause = Duration::from_millis(100 + dice.below(600));
                next_kill = Instant::now() + pause * self.plan.patience;
                for name in DEVICES {
                    // The actor that writes to sysfs may be killed after it has set a long timeout
                    // and before it has set a short one again.
                    let _ = sysfs::write(&sysfs::attribute(name, "msg_timeout"), "1");
                }
            }
        }
    }

    /// Returns an actor whose calls the supervisor itself makes. The actor's number follows those
    /// of the other actors, and the supervisor does not watch this actor.
    fn own_actor(&self) -> Actor {
        let path = self.scratch.path("own");
        let records = Records::open(&path, RECORDS + THREADS).expect("records");
        let (number, seed) = (ACTORS.len(), self.plan.seed);
        Actor::new(
            Arc::new(records),
            &self.scratch.path(""),
            number,
            seed,
            false,
        )
    }

    fn kill(&mut self, number: usize) {
        if let Some(running) = self.running.iter_mut().find(|one| one.number == number) {
            let _ = running.child.kill();
            self.killed += 1;
        }
    }

    /// Restarts the actors that have ended. Panics if anything other than `SIGKILL` or `SIGBUS` has
    /// ended one of them.
    #[track_caller]
    fn replace_the_dead(&mut self) {
        let mut dead = Vec::new();
        self.running
            .retain_mut(|running| match running.child.try_wait() {
                Ok(Some(status)) => {
                    dead.push((running.number, status));
                    false
                }
                _ => true,
            });
        for (number, status) in dead {
            self.judge(number, status);
            for thread in 0..THREADS {
                self.records.record(number * THREADS + thread).rest();
            }
            self.start(number);
        }
    }

    #[track_caller]
    fn judge(&mut self, number: usize, status: ExitStatus) {
        use std::os::unix::process::ExitStatusExt;
        match status.signal() {
            Some(signal) if signal == Signal::KILL.as_raw() => {}
            // `SIGBUS` means that the memory that the actor was accessing no longer exists. The
            // signal is permitted, because daemons must cope with such memory.
            Some(signal) if signal == Signal::BUS.as_raw() => self.bus_errors += 1,
            _ => {
                let name = ACTORS[number].0;
                let log = std::fs::read_to_string(self.scratch.path(&format!("{name}.log")));
                let log = log.unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(40)..];
                panic!("{name} ended: {status}\n{}", tail.join("\n"));
            }
        }
    }

    /// Asserts that no call exceeds its time limit. A call that may wait indefinitely
    /// ([`Wait::Endless`]) is an exception: at its time limit, the actor is killed.
    #[track_caller]
    fn watch(&mut self) {
        let mut tired = Vec::new();
        let mut stuck = None;
        self.pace.look();
        for running in &mut self.running {
            let name = running.name();
            for thread in 0..THREADS {
                let record = self.records.record(running.number * THREADS + thread);
                let (ticks, since) = &mut running.seen[thread];
                if *ticks != record.ticks() {
                    (*ticks, *since) = (record.ticks(), Instant::now());
                    continue;
                }
                let Some(wait) = record.wait() else {
                    continue;
                };
                // The limit of an endless call is the time after which the supervisor kills the
                // actor. A slow machine needs no longer limit.
                let limit = match wait {
                    Wait::Endless => wait.limit(),
                    _ => self.pace.stretch(wait.limit()),
                };
                if since.elapsed() < limit * self.plan.patience {
                    continue;
                }
                if wait == Wait::Endless {
                    tired.push(running.number);
                } else {
                    stuck = Some(format!(
                        "{}: {} has not ended for {:?}",
                        name,
                        record.name(),
                        since.elapsed()
                    ));
                }
            }
        }
        for number in tired {
            self.kill(number);
        }
        if let Some(stuck) = stuck {
            panic!("{stuck}\n{}", self.stacks());
        }
    }

    /// Returns the last call and the kernel stacks of each actor.
    fn stacks(&self) -> String {
        let mut text = String::new();
        for running in &self.running {
            let record = self.records.record(running.number * THREADS);
            text += &format!(
                "== {}, in or after {}\n{}",
                running.name(),
                record.name(),
                stacks(running.child.id())
            );
        }
        text
    }

    /// Kills all actors, even in the middle of a call, and removes the devices that they leave.
    #[track_caller]
    fn take_down(&mut self) {
        for running in &mut self.running {
            let _ = running.child.kill();
        }
        // Starts a daemon for each device, because some actors may wait for a daemon's answer.
        let daemons = DEVICES.map(|name| {
            let _ = sysfs::write(&sysfs::attribute(name, "msg_timeout"), "1");
            RefusingDaemon::start(name)
        });
        let limit = Duration::from_secs(30) * self.plan.patience;
        let mut ending = Limit::new(limit);
        while !process::reap_children(Duration::from_millis(100)).is_empty() {
            let stacks = || self.stacks();
            assert!(!ending.is_over(), "they do not end:\n{}", stacks());
        }
        self.running.clear();
        let names = cleanup::devices();
        for name in &names {
            let vdpa = Vdpa::open().expect("the vDPA netlink");
            if vdpa.device(name).is_ok() {
                vdpa.delete(name).expect("taking a device off the bus");
            }
        }
        drop(daemons);
        let control = Control::open().expect("the control device");
        for name in &names {
            within(limit, "a device is destroyed", || {
                control.destroy(name).is_ok()
            });
        }
    }

    /// Prints the numbers of calls and of killed processes.
    fn report(&self) {
        let (mut calls, mut good) = (0, 0);
        for (number, (name, _)) in ACTORS.iter().enumerate() {
            let (mut c, mut g) = (0, 0);
            for thread in 0..THREADS {
                let record = self.records.record(number * THREADS + thread);
                c += record.calls();
                g += record.good();
            }
            if c != 0 {
                note(format_args!("{name}: {c} calls, {g} good"));
            }
            calls += c;
            good += g;
        }
        note(format_args!(
            "fuzz: {calls} calls, {good} good; {} processes killed, {} of SIGBUS",
            self.killed, self.bus_errors
        ));
    }
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        for running in &mut self.running {
            let _ = running.child.kill();
        }
    }
}
