// SPDX-License-Identifier: GPL-2.0

//! The state machine of the device status, which decides the effects of a driver's write to the
//! status.
//!
//! The status byte alone does not show what a driver has done so far. The byte contains only the
//! bits that the daemon has acknowledged, but a driver continues even without an acknowledgement.
//! In addition, the virtio core does not reset a device between a failed probe and the next probe.
//! Instead, the next driver adds its bits to the bits that are already set. So the binding keeps
//! the [`Phase`] of the driver beside the status. [`step`] alone decides the effects of a write
//! from the phase, the status and the written value.
//!
//! This module uses no kernel types, so that its tests run on the host as well
//! (`selftests/driver-logic`).
//!
//! References: virtio 1.3, sections 2.1 (device status) and 3.1.1 (driver initialization).

/// Status bit: the driver has noticed the device.
pub(crate) const ACKNOWLEDGE: u8 = 1;
/// Status bit: the driver knows how to drive the device.
pub(crate) const DRIVER: u8 = 2;
/// Status bit: the driver is set up and drives the device.
pub(crate) const DRIVER_OK: u8 = 4;
/// Status bit: the driver has given up on the device.
pub(crate) const FAILED: u8 = 128;

/// The progress of a device's driver, independent of what the daemon has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Phase {
    /// The device is reset. No driver has begun to use the device.
    Reset,
    /// A driver is setting the device up.
    SetUp,
    /// The driver has written `DRIVER_OK`.
    Ready,
    /// A kernel driver that was ready has disabled its last virtqueue without a reset. This happens
    /// when the driver's probe fails. The driver writes `FAILED` next.
    Stopped,
    /// The driver has written `FAILED`.
    Failed,
}

impl Phase {
    /// Returns the phase after a kernel driver has disabled the last virtqueue that was ready.
    pub(crate) fn after_last_vq(self) -> Self {
        match self {
            Self::Ready => Self::Stopped,
            phase => phase,
        }
    }
}

/// The effect of a write to the device status on the driver's callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallbackAction {
    /// The callbacks stay as they are.
    Keep,
    /// The callbacks may be called from now on.
    DriverOk,
    /// The callbacks are cleared, because the driver may be removed next.
    Clear,
}

/// The effects of a write to the device status. The effects take place in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Whether the device is reset first, because the previous driver has not done so. The reset
    /// sends status 0 to the daemon and clears all callbacks.
    pub(crate) resets: bool,
    /// Whether a driver begins to use the device with this write. Before such a write, no driver
    /// has used the device since its last reset, which may be the reset of this step.
    pub(crate) begins: bool,
    /// The effect on the callbacks, which takes place before the daemon gets the status.
    pub(crate) callbacks: CallbackAction,
    /// The driver's phase after the write, whatever the daemon answers.
    pub(crate) phase: Phase,
    /// The status to send to the daemon, or 0 to send no status.
    pub(crate) status: u8,
}

/// Decides the effects of a driver's write of `written`, which must not be 0, to the device status.
/// `status` is the status that the daemon has acknowledged. `is_kernel` is `true` for a kernel
/// driver and `false` for vhost.
///
/// | phase | a kernel driver writes | vhost writes | effect |
/// |---|---|---|---|
/// | any but `Failed` | `FAILED` | `FAILED` | driver has failed: callbacks are cleared |
/// | `Reset`, `SetUp` | `DRIVER_OK` | `DRIVER_OK` | driver is ready: callbacks may be called |
/// | `Reset` | a bit other than `ACKNOWLEDGE` | the same | driver begins |
/// | `Ready` | `DRIVER_OK`, not acknowledged | anything else | none: the daemon gets the status |
/// | `Stopped`, `Failed` | | anything else | none: the daemon gets the status |
/// | `Ready`, `Stopped` | anything else | | device is reset, next driver begins |
/// | `Failed` | anything | | device is reset, next driver begins |
///
/// The virtio core adds bits to the status that it reads. A kernel driver that was ready writes
/// only `FAILED`, or `DRIVER_OK` again if the daemon refused that bit. So any other write comes
/// from the next driver. That write often leaves the status as it is, because the next driver's
/// first bit ([`DRIVER`]) is already set. A vhost client must reset the device itself before it can
/// continue after a failure.
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

/// Decides the effects of the first write of a kernel driver whose predecessor did not reset the
/// device. The device is reset first. Of the bits of `written`, only [`ACKNOWLEDGE`] and [`DRIVER`]
/// have an effect, because a new driver sets these bits first.
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

    /// Returns every combination of phase, status, written value and kind of driver.
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
    fn callbacks_may_be_called_from_a_driver_ok_that_begins_and_from_nothing_else() {
        for (phase, status, written, is_kernel) in all() {
            let step = step(phase, status, written, is_kernel);
            let begins = matches!(phase, Phase::Reset | Phase::SetUp)
                && written & (DRIVER_OK | FAILED) == DRIVER_OK;

            assert_eq!(
                step.callbacks == CallbackAction::DriverOk,
                begins,
                "{phase:?} {status:#x} {written:#x} {is_kernel}"
            );
            // A write that permits the callbacks makes the driver ready, and does not reset the
            // device.
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
            // The device is reset only for a kernel driver. A vhost client must reset the device
            // itself.
            assert!(!step.resets || is_kernel);
            // The device is not reset while a driver sets it up.
            assert!(!step.resets || !matches!(phase, Phase::Reset | Phase::SetUp));
        }
    }

    #[test]
    fn a_driver_begins_once_with_its_first_bit() {
        for (phase, status, written, is_kernel) in all() {
            let step = step(phase, status, written, is_kernel);
            let first = phase == Phase::Reset && written & !(ACKNOWLEDGE | FAILED) != 0;

            // A driver whose first write contains `FAILED` does not begin to use the device.
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

    /// Checks the result of [`step`] for typical sequences of writes. Each row has the phase, the
    /// acknowledged status, the written value, whether a kernel driver writes, and the fields of
    /// the expected [`Step`].
    #[test]
    fn the_table_holds() {
        use CallbackAction::*;
        use Phase::*;

        #[rustfmt::skip]
        let rows = [
            // The first probe, which succeeds, writes one bit after another.
            (Reset,   0x00, 0x01, true,  false, false, Keep,   Reset,  0x01),
            (Reset,   0x01, 0x03, true,  false, true,  Keep,   SetUp,  0x03),
            (SetUp,   0x03, 0x0b, true,  false, false, Keep,   SetUp,  0x0b),
            (SetUp,   0x0b, 0x0f, true,  false, false, DriverOk, Ready,  0x0f),
            // The virtio core writes `DRIVER_OK` again if the daemon has refused it.
            (Ready,   0x0b, 0x0f, true,  false, false, Keep,   Ready,  0x0f),
            // A driver fails. In the first row, this happens before `DRIVER_OK`; in the second row,
            // after `DRIVER_OK`; in the third row, after the driver has disabled its last
            // virtqueue.
            (SetUp,   0x0b, 0x8b, true,  false, false, Clear,  Failed, 0x8b),
            (Ready,   0x0f, 0x8f, true,  false, false, Clear,  Failed, 0x8f),
            (Stopped, 0x0f, 0x8f, true,  false, false, Clear,  Failed, 0x8f),
            // The first write of the probe after a failed one. The written byte equals the status,
            // because `DRIVER` is already set.
            (Failed,  0x8b, 0x8b, true,  true,  true,  Keep,   SetUp,  0x03),
            (Failed,  0x8f, 0x8f, true,  true,  true,  Keep,   SetUp,  0x03),
            // The first write of the probe after a failed one, if the daemon has refused `FAILED`.
            (Failed,  0x0f, 0x0f, true,  true,  true,  Keep,   SetUp,  0x03),
            // A probe and the beginning of the next probe, if the daemon refuses every status.
            (Reset,   0x00, 0x02, true,  false, true,  Keep,   SetUp,  0x02),
            (SetUp,   0x00, 0x04, true,  false, false, DriverOk, Ready,  0x04),
            (Ready,   0x00, 0x80, true,  false, false, Clear,  Failed, 0x80),
            (Failed,  0x00, 0x02, true,  true,  true,  Keep,   SetUp,  0x02),
            // A driver has left without a reset, and the virtio core writes `ACKNOWLEDGE` again.
            (Ready,   0x0f, 0x0f, true,  true,  true,  Keep,   SetUp,  0x03),
            (Stopped, 0x0f, 0x0f, true,  true,  true,  Keep,   SetUp,  0x03),
            // The writes of QEMU, which does not write `ACKNOWLEDGE` and `DRIVER`.
            (Reset,   0x00, 0x08, false, false, true,  Keep,   SetUp,  0x08),
            (SetUp,   0x08, 0x0c, false, false, false, DriverOk, Ready,  0x0c),
            // The writes of a process that writes all bits at once, writes them again, fails, and
            // continues without a reset.
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

    /// A device as the virtio core sees it. The bits of `answers`, from the lowest to the highest,
    /// are the daemon's answers: 1 to agree, 0 to refuse.
    struct Device {
        phase: Phase,
        status: u8,
        driver_ok: bool,
        answers: u32,
    }

    impl Device {
        fn agrees(&mut self) -> bool {
            let agrees = self.answers & 1 != 0;
            self.answers >>= 1;
            agrees
        }

        fn reset(&mut self) {
            (self.phase, self.status, self.driver_ok) = (Phase::Reset, 0, false);
            self.agrees();
        }

        /// Does what `virtio_add_status()` does.
        fn add(&mut self, bit: u8) {
            let step = step(self.phase, self.status, self.status | bit, true);
            if step.resets {
                self.reset();
            }
            match step.callbacks {
                CallbackAction::Keep => (),
                CallbackAction::DriverOk => self.driver_ok = true,
                CallbackAction::Clear => self.driver_ok = false,
            }
            self.phase = step.phase;
            if step.status != 0 && self.agrees() {
                self.status = step.status;
            }
        }

        /// Does what `virtio_dev_probe()` does, for a driver that fails after `steps` of its own
        /// steps. If `steps` is 2, the driver succeeds.
        fn probe(&mut self, steps: u32) {
            self.add(DRIVER);
            // The device has no trace of the previous driver, however that driver ended.
            assert!(!self.driver_ok && self.status & !(ACKNOWLEDGE | DRIVER) == 0);
            self.add(FEATURES_OK);
            if self.status & FEATURES_OK == 0 || steps == 0 {
                return self.fail();
            }
            assert!(!self.driver_ok);
            // `virtio_device_ready()` warns if `DRIVER_OK` is already set.
            assert_eq!(self.status & DRIVER_OK, 0);
            self.add(DRIVER_OK);
            assert!(self.driver_ok, "a driver that waits can be interrupted");
            if steps == 1 {
                // The driver deletes its virtqueues before it fails.
                self.phase = self.phase.after_last_vq();
                self.driver_ok = false;
                return self.fail();
            }
            if self.status & DRIVER_OK == 0 {
                self.add(DRIVER_OK);
                assert!(self.driver_ok);
            }
        }

        fn fail(&mut self) {
            self.add(FAILED);
            assert!(!self.driver_ok);
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
                        driver_ok: false,
                        answers,
                    };
                    device.reset();
                    device.add(ACKNOWLEDGE);
                    device.probe(first);
                    if device.phase == Phase::Ready {
                        // `virtio_dev_remove()` does the same.
                        device.reset();
                        device.add(ACKNOWLEDGE);
                    }
                    device.probe(second);
                }
            }
        }
    }
}
