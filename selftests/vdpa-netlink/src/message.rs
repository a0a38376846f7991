// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Messages of the vDPA core's netlink family: a command with its attributes.

use std::fmt::Debug;

use netlink_packet_core::{DecodeError, Emitable, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader};

use crate::attributes::Attributes;

/// The name of the generic netlink family.
pub(crate) const FAMILY: &str = "vdpa";

/// The commands (`enum vdpa_command` of `include/uapi/linux/vdpa.h`).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Command {
    MgmtdevGet = 2,
    DevNew = 3,
    DevDel = 4,
    DevGet = 5,
    DevConfigGet = 6,
}

/// A generic netlink family whose messages can be sent and received.
pub(crate) trait Family:
    GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug + PartialEq + Eq
{
}

impl<F> Family for F where
    F: GenlFamily
        + Emitable
        + ParseableParametrized<[u8], GenlHeader>
        + Clone
        + Debug
        + PartialEq
        + Eq
{
}

/// A message of the vDPA core's family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) command: u8,
    pub(crate) attributes: Attributes,
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.emit(buffer)
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self {
            command: header.cmd,
            attributes: Attributes::parse(buffer)?,
        })
    }
}
