// SPDX-License-Identifier: GPL-2.0

//! The commands of a network card's control virtqueue (virtio 1.3, section 5.1.6.5).
//!
//! [`Settings`] records what the driver has set by these commands.
//!
//! This module uses no kernel facilities, so that `selftests/driver-logic` can compile and test it
//! on the host as well.

use super::virtio::feature;
use core::ops::DerefMut;

/// Maximum length of a command in bytes. A command of this length has room for 1,363 MAC addresses
/// in its filter tables.
pub(crate) const MAX_LEN: usize = 8192;

/// The answer of a device that has carried out a command.
pub(crate) const OK: u8 = 0;
/// The answer of a device that has refused a command.
pub(crate) const ERR: u8 = 1;

/// The classes of commands, and the commands of each class.
mod class {
    pub(super) const RX: u8 = 0;
    pub(super) const MAC: u8 = 1;
    pub(super) const MAC_TABLE_SET: u8 = 0;
    pub(super) const MAC_ADDR_SET: u8 = 1;
    pub(super) const VLAN: u8 = 2;
    pub(super) const VLAN_ADD: u8 = 0;
    pub(super) const VLAN_DEL: u8 = 1;
    pub(super) const MQ: u8 = 4;
    pub(super) const MQ_PAIRS_SET: u8 = 0;
}

/// The features whose commands this module supports.
///
/// virtio_net can continue whatever the daemon answers to these commands, and even if the daemon
/// does not answer at all. The commands of other features are not supported, for these reasons:
///
/// - Offloads that change at run time, hash reports and receive side scaling decide how the driver
///   lays out and reads received packets. The driver must be able to rely on the device to carry
///   out the commands of these features.
/// - Interrupt coalescing: the driver sends such a command whenever the traffic changes, and waits
///   for the answer each time. The daemon controls the traffic, and so how often the driver waits.
/// - Device statistics: the daemon's answer has data that the driver has to parse.
/// - Announcements: virtio_net makes an announcement in a work item that takes RTNL
///   (`virtnet_config_changed_work`). Closing the interface waits for that work item with RTNL held
///   (`virtnet_close`, 7.3). That can deadlock, and the daemon chooses the moment of the
///   announcement.
pub(crate) const FEATURES: u64 = feature::NET_CTRL_VQ
    | feature::NET_CTRL_RX
    | feature::NET_CTRL_VLAN
    | feature::NET_CTRL_RX_EXTRA
    | feature::NET_MQ
    | feature::NET_CTRL_MAC_ADDR;

/// The number of receive modes.
const MODES: u8 = 6;
/// The first receive mode that needs `VIRTIO_NET_F_CTRL_RX_EXTRA`. All modes with higher numbers
/// need this feature, too.
const FIRST_EXTRA_MODE: u8 = 2;

/// The number of VLAN ids.
const VLANS: u16 = 4096;

/// The length of a MAC address, in bytes.
const ADDRESS_LEN: usize = 6;

/// A valid command of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    /// Switches a receive mode on (`true`) or off.
    Mode(u8, bool),
    /// Sets the MAC filter tables. Holds the bytes of the command without the two bytes at its
    /// start, which are the class and the command number.
    MacTable(&'a [u8]),
    /// Sets the card's own MAC address.
    MacAddress([u8; ADDRESS_LEN]),
    /// Adds a VLAN id to the filter (`true`), or removes it from the filter.
    Vlan(u16, bool),
    /// Sets the number of queue pairs in use.
    Pairs(u16),
}

impl<'a> Command<'a> {
    /// Parses a command. Returns [`None`] if the command is malformed or unknown, if it needs a
    /// feature that is not in `features`, or if it sets the number of queue pairs to 0 or to more
    /// than `max_pairs`.
    pub(crate) fn parse(bytes: &'a [u8], features: u64, max_pairs: u16) -> Option<Self> {
        let (&[class, command], data) = bytes.split_first_chunk()?;
        let (parsed, feature) = match (class, command) {
            (class::RX, mode @ 0..MODES) => {
                let on = match data {
                    [0] => false,
                    [1] => true,
                    _ => return None,
                };
                let feature = if mode < FIRST_EXTRA_MODE {
                    feature::NET_CTRL_RX
                } else {
                    feature::NET_CTRL_RX_EXTRA
                };

                (Self::Mode(mode, on), feature)
            }
            (class::MAC, class::MAC_TABLE_SET) => {
                if !after_table(after_table(data)?)?.is_empty() {
                    return None;
                }
                (Self::MacTable(data), feature::NET_CTRL_RX)
            }
            (class::MAC, class::MAC_ADDR_SET) => {
                let address = data.try_into().ok()?;

                (Self::MacAddress(address), feature::NET_CTRL_MAC_ADDR)
            }
            (class::VLAN, class::VLAN_ADD | class::VLAN_DEL) => {
                let vlan = u16::from_le_bytes(data.try_into().ok()?);
                if vlan >= VLANS {
                    return None;
                }
                (
                    Self::Vlan(vlan, command == class::VLAN_ADD),
                    feature::NET_CTRL_VLAN,
                )
            }
            (class::MQ, class::MQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                if !(1..=max_pairs).contains(&pairs) {
                    return None;
                }
                (Self::Pairs(pairs), feature::NET_MQ)
            }
            _ => return None,
        };

        (features & feature != 0).then_some(parsed)
    }
}

/// Returns the bytes after the table of MAC addresses at the start of `bytes`. Returns [`None`] if
/// `bytes` has fewer addresses than the table's count says.
fn after_table(bytes: &[u8]) -> Option<&[u8]> {
    let (&count, rest) = bytes.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(count)).ok()?;

    rest.get(count.checked_mul(ADDRESS_LEN)?..)
}

/// The outcome of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The daemon has carried out the command.
    Done,
    /// The daemon has refused the command.
    Refused,
    /// The daemon did not answer in time. It may or may not carry out the command.
    Unknown,
}

/// A setting of the card that a command can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// A receive mode.
    Mode(u8),
    /// The filter tables.
    MacTable,
    /// The card's own MAC address.
    MacAddress,
    /// Whether the filter contains a VLAN id.
    Vlan(u16),
    /// The number of queue pairs in use.
    Pairs,
}

impl Setting {
    /// Returns the setting's bit in [`Settings::set`] and [`Settings::stale`], or 0 for a VLAN id,
    /// whose bit is in [`Settings::vlans`] and [`Settings::stale_vlans`].
    fn bit(self) -> u16 {
        match self {
            Self::Mode(mode) => 1 << mode,
            Self::MacTable => 1 << MODES,
            Self::MacAddress => 1 << (MODES + 1),
            Self::Pairs => 1 << (MODES + 2),
            Self::Vlan(_) => 0,
        }
    }

    /// Returns all settings whose [`bit`](Self::bit) is not 0.
    fn with_a_bit() -> impl Iterator<Item = Self> {
        (0..MODES)
            .map(Self::Mode)
            .chain([Self::MacTable, Self::MacAddress, Self::Pairs])
    }
}

/// A set of VLAN ids.
struct Vlans([u64; VLANS as usize / 64]);

impl Vlans {
    const fn new() -> Self {
        Self([0; VLANS as usize / 64])
    }

    fn has(&self, vlan: u16) -> bool {
        self.0
            .get(usize::from(vlan / 64))
            .is_some_and(|word| word >> (vlan % 64) & 1 != 0)
    }

    fn set(&mut self, vlan: u16, on: bool) {
        if let Some(word) = self.0.get_mut(usize::from(vlan / 64)) {
            let bit = 1 << (vlan % 64);

            *word = if on { *word | bit } else { *word & !bit };
        }
    }

    fn first(&self) -> Option<u16> {
        let (index, word) = (0..).zip(&self.0).find(|&(_, &word)| word != 0)?;

        // The number of trailing zeros of a word that is not 0 is below 64.
        Some(index * 64 + word.trailing_zeros() as u16)
    }
}

/// The settings of a network card as its driver believes them to be. A setting is *stale* if the
/// daemon may have another value for it.
///
/// virtio_net ignores the answers to most commands, and believes that the commands were carried
/// out. If a command that sets the MAC address or the number of queue pairs fails, virtio_net keeps
/// the previous value. The first number of pairs, which virtio_net sets while it is bound, is an
/// exception: virtio_net keeps that number even if the command fails.
///
/// A command that does not raise the number of pairs must not fail. Removing an interface that has
/// an XDP program sets the number of pairs, and the kernel warns if that command fails
/// (`dev_xdp_uninstall`). virtio_net copes with frames that arrive in pairs that it no longer uses.
pub(crate) struct Settings<B> {
    /// The [bits](Setting::bit) of the settings that have a value. VLAN ids are in `vlans` instead.
    set: u16,
    stale: u16,
    modes_on: u8,
    address: [u8; ADDRESS_LEN],
    pairs: u16,
    /// The buffer for the MAC filter tables, which are in its first `table_len` bytes.
    table: B,
    table_len: usize,
    vlans: Vlans,
    stale_vlans: Vlans,
}

impl<B: DerefMut<Target = [u8]>> Settings<B> {
    /// Returns the settings of a driver that has sent no command yet. `address`, if given, is the
    /// MAC address that the driver has read from the configuration space. `table` is the buffer for
    /// the MAC filter tables. Tables that do not fit into the buffer are not recorded.
    pub(crate) fn new(table: B, address: Option<[u8; ADDRESS_LEN]>) -> Self {
        Self {
            set: address.map_or(0, |_| Setting::MacAddress.bit()),
            stale: 0,
            modes_on: 0,
            address: address.unwrap_or_default(),
            pairs: 0,
            table,
            table_len: 0,
            vlans: Vlans::new(),
            stale_vlans: Vlans::new(),
        }
    }

    /// Records the outcome of a command. Returns true if the driver must get the answer [`OK`], and
    /// false if the driver must get the answer [`ERR`].
    pub(crate) fn record(&mut self, command: Command<'_>, outcome: Outcome) -> bool {
        let mut is_done = outcome == Outcome::Done;
        let (setting, is_believed) = match command {
            Command::Mode(mode, on) => {
                let bit = 1 << mode;

                self.modes_on = self.modes_on & !bit | if on { bit } else { 0 };
                (Setting::Mode(mode), true)
            }
            Command::MacTable(tables) => {
                self.set &= !Setting::MacTable.bit();
                let fits = self.table.get_mut(..tables.len()).map(|to| {
                    to.copy_from_slice(tables);
                    self.table_len = tables.len();
                });

                (Setting::MacTable, fits.is_some())
            }
            Command::MacAddress(address) => {
                if is_done {
                    self.address = address;
                }
                (Setting::MacAddress, is_done)
            }
            Command::Pairs(pairs) => {
                let is_first = self.set & Setting::Pairs.bit() == 0;

                is_done |= !is_first && pairs <= self.pairs;
                if is_done || is_first {
                    self.pairs = pairs;
                }
                (Setting::Pairs, is_done || is_first)
            }
            Command::Vlan(vlan, add) => {
                self.vlans.set(vlan, add);
                (Setting::Vlan(vlan), true)
            }
        };

        if is_believed {
            self.set |= setting.bit();
        }
        self.set_stale(setting, outcome == Outcome::Unknown);

        is_done
    }

    fn set_stale(&mut self, setting: Setting, is_stale: bool) {
        if let Setting::Vlan(vlan) = setting {
            self.stale_vlans.set(vlan, is_stale);
        } else if is_stale {
            // A setting without a value cannot be restored, so the setting does not become stale.
            self.stale |= setting.bit() & self.set;
        } else {
            self.stale &= !setting.bit();
        }
    }

    /// Records that a command that restores `setting` has been sent to the daemon.
    pub(crate) fn restored(&mut self, setting: Setting) {
        self.set_stale(setting, false);
    }

    /// Records that there is a new daemon, which has none of the settings. All settings that have a
    /// value become stale.
    pub(crate) fn forgotten(&mut self) {
        self.stale = self.set;
        self.stale_vlans.0 = self.vlans.0;
    }

    /// Writes into `to` a command that restores one stale setting. Returns that setting and the
    /// length of the command in bytes, or [`None`] if no setting is stale.
    pub(crate) fn next_stale(&self, to: &mut [u8]) -> Option<(Setting, usize)> {
        let setting = Setting::with_a_bit()
            .find(|setting| self.stale & setting.bit() != 0)
            .or_else(|| self.stale_vlans.first().map(Setting::Vlan))?;
        let pairs = self.pairs.to_le_bytes();
        let mode_on = |mode| [self.modes_on >> mode & 1];
        let (mode, vlan);

        let (class, command, data): (_, _, &[u8]) = match setting {
            Setting::Mode(number) => {
                mode = mode_on(number);
                (class::RX, number, &mode)
            }
            Setting::MacTable => (
                class::MAC,
                class::MAC_TABLE_SET,
                self.table.get(..self.table_len)?,
            ),
            Setting::MacAddress => (class::MAC, class::MAC_ADDR_SET, &self.address),
            Setting::Vlan(id) => {
                vlan = id.to_le_bytes();
                let command = if self.vlans.has(id) {
                    class::VLAN_ADD
                } else {
                    class::VLAN_DEL
                };

                (class::VLAN, command, &vlan)
            }
            Setting::Pairs => (class::MQ, class::MQ_PAIRS_SET, &pairs),
        };

        let len = 2 + data.len();
        let (header, rest) = to.get_mut(..len)?.split_first_chunk_mut()?;
        *header = [class, command];
        rest.copy_from_slice(data);

        Some((setting, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: u16 = 4;

    fn parse(bytes: &[u8]) -> Option<Command<'_>> {
        Command::parse(bytes, FEATURES, PAIRS)
    }

    /// Returns a valid command that sets the MAC filter tables. The first table has one address,
    /// and the second table has two addresses.
    fn tables() -> Vec<u8> {
        [&[1, 0, 1, 0, 0, 0][..], &[2; 6], &[2, 0, 0, 0], &[3; 12]].concat()
    }

    /// Returns valid commands of all kinds, each with the feature that it needs.
    fn commands() -> Vec<(Vec<u8>, u64)> {
        vec![
            (vec![0, 0, 1], feature::NET_CTRL_RX),
            (vec![0, 1, 0], feature::NET_CTRL_RX),
            (vec![0, 2, 1], feature::NET_CTRL_RX_EXTRA),
            (vec![0, 5, 1], feature::NET_CTRL_RX_EXTRA),
            (tables(), feature::NET_CTRL_RX),
            (vec![1, 1, 2, 3, 4, 5, 6, 7], feature::NET_CTRL_MAC_ADDR),
            (vec![2, 0, 0xff, 0xf], feature::NET_CTRL_VLAN),
            (vec![2, 1, 1, 0], feature::NET_CTRL_VLAN),
            (vec![4, 0, 4, 0], feature::NET_MQ),
        ]
    }

    #[test]
    fn each_command_needs_its_feature_and_its_length() {
        for (bytes, feature) in commands() {
            assert!(parse(&bytes).is_some(), "{bytes:?}");
            assert!(Command::parse(&bytes, feature, PAIRS).is_some());
            assert_eq!(Command::parse(&bytes, FEATURES & !feature, PAIRS), None);
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), None, "{bytes:?} {len}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(parse(&longer), None, "{longer:?}");
        }
    }

    #[test]
    fn what_is_out_of_range_or_unknown_is_refused() {
        let huge = [&[1, 0][..], &[0xff; 4], &[0; 64]].concat();
        for bytes in [
            &[0, 0, 2][..],
            &[0, 6, 1],
            &[2, 0, 0, 0x10],
            &[2, 2, 0, 0],
            &[4, 0, 0, 0],
            &[4, 0, 5, 0],
            &[4, 1, 1, 0],
            &[3, 0],
            &[5, 0],
            &[6, 0],
            &[0xff, 0xff],
            &huge,
        ] {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }

    /// Restores all stale settings, and returns the commands that restore them.
    fn restore(settings: &mut Settings<Box<[u8]>>) -> Vec<Vec<u8>> {
        let mut commands = Vec::new();
        let mut buf = [0; MAX_LEN];
        while let Some((setting, len)) = settings.next_stale(&mut buf) {
            commands.push(buf[..len].to_vec());
            settings.restored(setting);
        }
        commands
    }

    fn settings() -> Settings<Box<[u8]>> {
        Settings::new(vec![0; MAX_LEN].into(), None)
    }

    #[test]
    fn a_new_daemon_is_told_what_was_set_and_an_old_one_nothing() {
        let mut settings = settings();
        for (bytes, _) in commands() {
            settings.record(parse(&bytes).unwrap(), Outcome::Done);
            assert_eq!(restore(&mut settings), [[]; 0]);
        }
        settings.forgotten();
        let mut expected: Vec<_> = commands().into_iter().map(|(bytes, _)| bytes).collect();
        // A VLAN id that was removed from the filter is not restored.
        expected.retain(|bytes| bytes[..2] != [2, 1]);
        let mut found = restore(&mut settings);
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(restore(&mut settings), [[]; 0]);
    }

    #[test]
    fn an_unknown_outcome_is_settled_by_what_the_driver_believes() {
        let after = |known: &[&[u8]], unknown: &[u8], outcome| {
            let mut settings = settings();
            for bytes in known {
                settings.record(parse(bytes).unwrap(), Outcome::Done);
            }
            settings.record(parse(unknown).unwrap(), outcome);
            restore(&mut settings)
        };
        let none = [[]; 0];
        let (old, new) = (
            [1, 1, 2, 2, 2, 2, 2, 2].as_slice(),
            [1, 1, 4, 4, 4, 4, 4, 4].as_slice(),
        );
        // After an unknown outcome, the driver keeps the old MAC address, so that address is
        // restored. Without an old address, there is nothing to restore.
        assert_eq!(after(&[old], new, Outcome::Unknown), [old]);
        assert_eq!(after(&[], new, Outcome::Unknown), none);
        assert_eq!(after(&[old], new, Outcome::Refused), none);
        // After an unknown outcome, the driver keeps the old number of pairs. If there is no old
        // number, or if the new number is lower, the driver uses the new number instead.
        let (two, three) = ([4, 0, 2, 0].as_slice(), [4, 0, 3, 0].as_slice());
        assert_eq!(after(&[two], three, Outcome::Unknown), [two]);
        assert_eq!(after(&[three], two, Outcome::Unknown), [two]);
        assert_eq!(after(&[three], two, Outcome::Refused), none);
        assert_eq!(after(&[], three, Outcome::Unknown), [three]);
        assert_eq!(after(&[], three, Outcome::Refused), none);
        // For settings other than the MAC address and the number of pairs, the driver believes that
        // the new value is in effect. So the new value is restored after an unknown outcome.
        for bytes in [&[0, 0, 1][..], &[0, 1, 0], &[2, 1, 5, 0], &[2, 0, 7, 0]] {
            assert_eq!(after(&[], bytes, Outcome::Unknown), [bytes]);
            assert_eq!(after(&[], bytes, Outcome::Refused), none);
        }
        assert_eq!(after(&[], &tables(), Outcome::Unknown), [tables()]);
    }

    #[test]
    fn a_first_number_of_pairs_that_was_refused_is_told_to_a_new_daemon() {
        let mut settings = settings();
        settings.record(Command::Pairs(3), Outcome::Refused);
        settings.record(Command::Pairs(4), Outcome::Refused);
        settings.forgotten();
        assert_eq!(restore(&mut settings), [[4, 0, 3, 0]]);
    }

    #[test]
    fn fewer_pairs_or_as_many_never_fail() {
        let mut settings = settings();
        assert!(!settings.record(Command::Pairs(3), Outcome::Refused));
        assert!(settings.record(Command::Pairs(3), Outcome::Unknown));
        assert!(!settings.record(Command::Pairs(4), Outcome::Unknown));
        assert!(settings.record(Command::Pairs(1), Outcome::Refused));
        assert!(!settings.record(Command::Pairs(2), Outcome::Refused));
        assert!(settings.record(Command::Pairs(2), Outcome::Done));
        assert!(!settings.record(Command::Mode(0, true), Outcome::Unknown));
        assert!(settings.record(Command::Mode(0, true), Outcome::Done));
    }

    #[test]
    fn the_first_address_is_restored_as_well() {
        let mut settings = Settings::new(vec![0; 8].into_boxed_slice(), Some([7; 6]));
        settings.record(Command::MacAddress([8; 6]), Outcome::Unknown);
        assert_eq!(restore(&mut settings), [[1, 1, 7, 7, 7, 7, 7, 7]]);
    }

    #[test]
    fn a_setting_is_not_stale_once_it_was_set_again() {
        let mut settings = settings();
        settings.record(Command::Mode(0, true), Outcome::Unknown);
        settings.record(Command::Vlan(9, true), Outcome::Unknown);
        settings.record(Command::Mode(0, false), Outcome::Done);
        settings.record(Command::Vlan(9, false), Outcome::Done);
        assert_eq!(restore(&mut settings), [[]; 0]);
    }

    #[test]
    fn tables_that_do_not_fit_are_not_restored() {
        let mut settings = Settings::new(vec![0; 8].into_boxed_slice(), None);
        let tables = tables();
        settings.record(Command::MacTable(&[0; 8]), Outcome::Done);
        settings.record(parse(&tables).unwrap(), Outcome::Unknown);
        settings.forgotten();
        assert_eq!(restore(&mut settings), [[]; 0]);
    }
}
