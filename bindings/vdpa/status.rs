// SPDX-License-Identifier: GPL-2.0

//! The device status as a state machine: what a driver's write to it means.
//!
//! A status byte alone does not say where its driver is. The device's status holds what the daemon has
//! acknowledged, while a driver goes on whether it did or not; and virtio's core does not reset a
//! device between a probe that failed and the next one, which adds its bits to those that are there.
//! So the binding keeps the [`Phase`] of the driver beside the status, and [`step`] alone decides, from
//! the two and what is written, what follows.
//!
//! No kernel types: the tests run on the host as well (`selftests/driver-logic`).
//!
//! virtio 1.3, sections 2.1 (device status) and 3.1.1 (driver initialization).

/// The driver has noticed the device.
pub(crate) const ACKNOWLEDGE: u8 = 1;
/// The driver knows how to drive the device.
pub(crate) const DRIVER: u8 = 2;
/// The driver is set up and drives the device.
pub(crate) const DRIVER_OK: u8 = 4;
/// The driver has given up on the device.
pub(crate) const FAILED: u8 = 128;

/// How far the driver of a device is, whatever the daemon made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Phase {
    /// The device is reset. No driver has begun with it.
    Reset,
    /// A driver sets it up.
    SetUp,
    /// The driver has written `DRIVER_OK`.
    Ready,
    /// A driver of the kernel that was ready has disabled its last virtqueue, without a reset: its
    /// probe fails, and it says so next.
    Stopped,
    /// The driver has written `FAILED`.
    Failed,
}

impl Phase {
    /// The phase after a driver of the kernel has disabled the last virtqueue that was ready.
    pub(crate) fn after_last_vq(self) -> Self {
        match self {
            Self::Ready => Self::Stopped,
            phase => phase,
        }
    }
}

/// What becomes of the driver's callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallbackAction {
    /// They stay what they are.
    Keep,
    /// They may be called from now on.
    DriverOk,
    /// They are forgotten: the driver may be gone next.
    Clear,
}

/// What follows from a write to the device status, in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The device is reset first, as the driver should have done: the daemon is told 0, and all
    /// callbacks are cleared.
    pub(crate) resets: bool,
    /// The driver is the first one since the last reset.
    pub(crate) begins: bool,
    /// What becomes of the callbacks, before the daemon is told.
    pub(crate) callbacks: CallbackAction,
    /// Where the driver is from now on, whatever the daemon answers.
    pub(crate) phase: Phase,
    /// What the daemon is told; 0 for nothing (more).
    pub(crate) status: u8,
}

/// Decides what it means that a driver writes `written`, which is not 0, to the status of a device that
/// has `status`, which the daemon acknowledged. `is_kernel` tells drivers of the kernel from vhost.
///
/// | phase | a driver of the kernel writes | vhost writes | follows |
/// |---|---|---|---|
/// | any but `Failed` | `FAILED` | the same | failed: callbacks cleared |
/// | `Reset`, `SetUp` | `DRIVER_OK` | the same | ready: callbacks live |
/// | `Reset` | another bit than `ACKNOWLEDGE` | the same | the driver begins |
/// | `Ready` | `DRIVER_OK`, not acknowledged before | `DRIVER_OK` | nothing new, the daemon is asked again |
/// | `Ready`, `Stopped` | anything else | anything else: nothing new | begun anew without a reset |
/// | `Failed` | anything | anything: nothing new | begun anew without a reset |
///
/// virtio's core adds bits to the status that it reads. A driver of the kernel that was ready writes
/// nothing more but `FAILED`, or `DRIVER_OK` again if that was refused; so any other write is by the next
/// one, and mostly changes nothing, as that one's first bit ([`DRIVER`]) was there already. A process has
/// to reset a device itself before it can go on after a failure.
pub(crate) fn step(phase: Phase, status: u8, written: u8, is_kernel: bool) -> Step {
    let goes_on = |callbacks, phase| Step {
        resets: false,
        begins: false,
        callbacks,
        phase,
        status: written,
    };

    match phase {
        Phase::Failed if !is_kernel => goes_on(CallbackAction::Keep, Phase::Failed),
        Phase::Failed => begin_anew(written),
        _ if written & FAILED != 0 => goes_on(CallbackAction::Clear, Phase::Failed),
        Phase::Reset | Phase::SetUp => Step {
            begins: phase == Phase::Reset && written & !ACKNOWLEDGE != 0,
            ..if written & DRIVER_OK != 0 {
                goes_on(CallbackAction::DriverOk, Phase::Ready)
            } else if written & !ACKNOWLEDGE != 0 {
                goes_on(CallbackAction::Keep, Phase::SetUp)
            } else {
                goes_on(CallbackAction::Keep, phase)
            }
        },
        Phase::Ready | Phase::Stopped if !is_kernel => goes_on(CallbackAction::Keep, phase),
        Phase::Ready if (written & !status) & DRIVER_OK != 0 => {
            goes_on(CallbackAction::Keep, phase)
        }
        Phase::Ready | Phase::Stopped => begin_anew(written),
    }
}

/// A driver of the kernel begins on a device that its predecessor did not reset: it is reset now, and
/// what a fresh driver would have written is what counts.
fn begin_anew(written: u8) -> Step {
    let status = written & (ACKNOWLEDGE | DRIVER);

    Step {
        resets: true,
        begins: true,
        callbacks: CallbackAction::Keep,
        phase: if status & DRIVER != 0 {
            Phase::SetUp
        } else {
            Phase::Reset
        },
        status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURES_OK: u8 = 8;
    const PHASES: [Phase; 5] = [
        Phase::Reset,
        Phase::SetUp,
        Phase::Ready,
        Phase::Stopped,
        Phase::Failed,
    ];

    /// Every phase, status, write and kind of driver.
    fn all() -> impl Iterator<Item = (Phase, u8, u8, bool)> {
        PHASES.into_iter().flat_map(|phase| {
            (0..=u8::MAX).flat_map(move |status| {
                (1..=u8::MAX).flat_map(move |written| {
                    [false, true].map(|is_kernel| (phase, status, written, is_kernel))
                })
            })
        })
    }

    #[test]
    fn callbacks_go_live_on_a_driver_ok_that_begins_and_on_nothing_else() {
        for (phase, status, written, is_kernel) in all() {
            let step = step(phase, status, written, is_kernel);
            let begins = matches!(phase, Phase::Reset | Phase::SetUp)
                && written & (DRIVER_OK | FAILED) == DRIVER_OK;

            assert_eq!(
                step.callbacks == CallbackAction::DriverOk,
                begins,
                "{phase:?} {status:#x} {written:#x} {is_kernel}"
            );
            // And where they do, it is the driver that just wrote it.
            assert!(!begins || (step.phase == Phase::Ready && !step.resets));
        }
    }

    #[test]
    fn a_driver_that_fails_is_called_no_more() {
        for (phase, status, written, is_kernel) in all() {
            let step = step(phase, status, written, is_kernel);

            if written & FAILED != 0 && phase != Phase::Failed {
                let is_cleared = step.callbacks == CallbackAction::Clear;
                assert!(is_cleared && step.phase == Phase::Failed && step.status == written);
            }
        }
    }

    #[test]
    fn after_a_failure_the_kernel_begins_anew_and_a_process_has_to_reset() {
        for (phase, status, written, is_kernel) in all() {
            if phase != Phase::Failed {
                continue;
            }
            let step = step(phase, status, written, is_kernel);
            if is_kernel {
                assert!(step.resets && step.begins);
                assert_eq!(step.status, written & (ACKNOWLEDGE | DRIVER));
                assert!(matches!(step.phase, Phase::Reset | Phase::SetUp));
            } else {
                assert!(!step.resets && step.phase == Phase::Failed);
                assert_eq!(step.status, written);
            }
        }
    }

    #[test]
    fn what_was_written_reaches_the_daemon_unless_the_device_is_reset() {
        for (phase, status, written, is_kernel) in all() {
            let step = step(phase, status, written, is_kernel);

            assert!(step.resets || step.status == written);
            // Only drivers of the kernel forget a reset.
            assert!(!step.resets || is_kernel);
            // Nobody who sets a device up for the first time is reset.
            assert!(!step.resets || !matches!(phase, Phase::Reset | Phase::SetUp));
        }
    }

    #[test]
    fn a_driver_begins_once_with_its_first_bit() {
        for (phase, status, written, is_kernel) in all() {
            let step = step(phase, status, written, is_kernel);
            let first = phase == Phase::Reset && written & !(ACKNOWLEDGE | FAILED) != 0;

            // One that fails at once has nothing to begin with.
            if written & FAILED == 0 || step.resets {
                assert_eq!(step.begins, first || step.resets, "{phase:?} {written:#x}");
            }
        }
    }

    #[test]
    fn vhost_may_write_what_is_there_again() {
        for (phase, status, written, _) in all() {
            let step = step(phase, status, written, false);

            if phase == Phase::Ready && written & FAILED == 0 {
                assert_eq!(step.callbacks, CallbackAction::Keep);
                assert_eq!(step.phase, Phase::Ready);
            }
        }
    }

    #[test]
    fn only_a_driver_that_was_ready_stops() {
        for phase in PHASES {
            let expected = match phase {
                Phase::Ready => Phase::Stopped,
                phase => phase,
            };
            assert_eq!(phase.after_last_vq(), expected);
        }
    }

    /// The table above, row by row: phase, acknowledged status, write, kind of driver, and what follows.
    #[test]
    fn the_table_holds() {
        use CallbackAction::*;
        use Phase::*;

        #[rustfmt::skip]
        let rows = [
            // The first probe, up to its end.
            (Reset,   0x00, 0x01, true,  false, false, Keep,   Reset,  0x01),
            (Reset,   0x01, 0x03, true,  false, true,  Keep,   SetUp,  0x03),
            (SetUp,   0x03, 0x0b, true,  false, false, Keep,   SetUp,  0x0b),
            (SetUp,   0x0b, 0x0f, true,  false, false, DriverOk, Ready,  0x0f),
            // The core asks again if the daemon has refused.
            (Ready,   0x0b, 0x0f, true,  false, false, Keep,   Ready,  0x0f),
            // Failures before and after DRIVER_OK, and with the virtqueues gone.
            (SetUp,   0x0b, 0x8b, true,  false, false, Clear,  Failed, 0x8b),
            (Ready,   0x0f, 0x8f, true,  false, false, Clear,  Failed, 0x8f),
            (Stopped, 0x0f, 0x8f, true,  false, false, Clear,  Failed, 0x8f),
            // The next probe: its DRIVER changes nothing in the byte.
            (Failed,  0x8b, 0x8b, true,  true,  true,  Keep,   SetUp,  0x03),
            (Failed,  0x8f, 0x8f, true,  true,  true,  Keep,   SetUp,  0x03),
            // The same if the daemon has refused FAILED,
            (Failed,  0x0f, 0x0f, true,  true,  true,  Keep,   SetUp,  0x03),
            // or everything.
            (Reset,   0x00, 0x02, true,  false, true,  Keep,   SetUp,  0x02),
            (SetUp,   0x00, 0x04, true,  false, false, DriverOk, Ready,  0x04),
            (Ready,   0x00, 0x80, true,  false, false, Clear,  Failed, 0x80),
            (Failed,  0x00, 0x02, true,  true,  true,  Keep,   SetUp,  0x02),
            // A driver that leaves without a reset: the core acknowledges the device again.
            (Ready,   0x0f, 0x0f, true,  true,  true,  Keep,   SetUp,  0x03),
            (Stopped, 0x0f, 0x0f, true,  true,  true,  Keep,   SetUp,  0x03),
            // QEMU, which leaves the first two bits out.
            (Reset,   0x00, 0x08, false, false, true,  Keep,   SetUp,  0x08),
            (SetUp,   0x08, 0x0c, false, false, false, DriverOk, Ready,  0x0c),
            // A process that says all at once, again, fails, and goes on without a reset.
            (Reset,   0x00, 0x0f, false, false, true,  DriverOk, Ready,  0x0f),
            (Ready,   0x0f, 0x0f, false, false, false, Keep,   Ready,  0x0f),
            (Ready,   0x0f, 0x8f, false, false, false, Clear,  Failed, 0x8f),
            (Failed,  0x8f, 0x8f, false, false, false, Keep,   Failed, 0x8f),
        ];

        for (before, status, written, is_kernel, resets, begins, callbacks, phase, told) in rows {
            let expected = Step {
                resets,
                begins,
                callbacks,
                phase,
                status: told,
            };
            let found = step(before, status, written, is_kernel);

            assert_eq!(found, expected, "{before:?} {status:#x} {written:#x}");
        }
    }

    /// A device whose daemon answers by the bits of `answers`, as virtio's core sees it.
    struct Device {
        phase: Phase,
        status: u8,
        live: bool,
        answers: u32,
    }

    impl Device {
        fn agrees(&mut self) -> bool {
            let agrees = self.answers & 1 != 0;
            self.answers >>= 1;
            agrees
        }

        fn reset(&mut self) {
            (self.phase, self.status, self.live) = (Phase::Reset, 0, false);
            self.agrees();
        }

        /// `virtio_add_status()`
        fn add(&mut self, bit: u8) {
            let step = step(self.phase, self.status, self.status | bit, true);
            if step.resets {
                self.reset();
            }
            match step.callbacks {
                CallbackAction::Keep => (),
                CallbackAction::DriverOk => self.live = true,
                CallbackAction::Clear => self.live = false,
            }
            self.phase = step.phase;
            if step.status != 0 && self.agrees() {
                self.status = step.status;
            }
        }

        /// `virtio_dev_probe()`, of a driver that fails after so many steps of its own.
        fn probe(&mut self, steps: u32) {
            self.add(DRIVER);
            // Nothing is left of the driver before, whatever became of it.
            assert!(!self.live && self.status & !(ACKNOWLEDGE | DRIVER) == 0);
            self.add(FEATURES_OK);
            if self.status & FEATURES_OK == 0 || steps == 0 {
                return self.fail();
            }
            assert!(!self.live);
            // `virtio_device_ready()` warns of this.
            assert_eq!(self.status & DRIVER_OK, 0);
            self.add(DRIVER_OK);
            assert!(self.live, "a driver that waits can be interrupted");
            if steps == 1 {
                // It deletes its virtqueues first.
                self.phase = self.phase.after_last_vq();
                self.live = false;
                return self.fail();
            }
            if self.status & DRIVER_OK == 0 {
                self.add(DRIVER_OK);
                assert!(self.live);
            }
        }

        fn fail(&mut self) {
            self.add(FAILED);
            assert!(!self.live);
        }
    }

    #[test]
    fn no_order_of_probes_and_answers_calls_a_driver_too_early_too_late_or_never() {
        for answers in 0..1 << 16 {
            for first in 0..3 {
                for second in 0..3 {
                    let mut device = Device {
                        phase: Phase::Reset,
                        status: 0,
                        live: false,
                        answers,
                    };
                    device.reset();
                    device.add(ACKNOWLEDGE);
                    device.probe(first);
                    if device.phase == Phase::Ready {
                        // `virtio_dev_remove()`
                        device.reset();
                        device.add(ACKNOWLEDGE);
                    }
                    device.probe(second);
                }
            }
        }
    }
}
