// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The generic netlink of the Linux vDPA core, which the `vdpa` program of iproute2 speaks too.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let vdpa = vdpa_netlink::Vdpa::open()?;
//! vdpa.add("disk0", "vduse")?;
//! println!("{:?}", vdpa.device("disk0")?);
//! vdpa.delete("disk0")?;
//! # Ok(())
//! # }
//! ```
//!
//! The calls wait for the kernel, and so for whatever adding or deleting a device waits for: with
//! a VDUSE device, its program's answers.

#![forbid(unsafe_code)]

mod attributes;
mod message;

use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::GenlMessage;
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

use crate::attributes::{Attribute, Attributes};
use crate::message::{Command, Message};

/// The family's name.
const FAMILY: &str = "vdpa";

/// A socket to the vDPA core.
#[derive(Debug)]
pub struct Vdpa {
    socket: Socket,
    family: u16,
}

/// What makes vDPA devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagementDevice {
    /// The bus it is on, if any.
    pub bus: Option<String>,
    /// Its name.
    pub name: String,
    /// Which virtio device ids it can make: a bit each.
    pub classes: u64,
    /// How many virtqueues a device of it can have; 0 when it does not say.
    pub max_queues: u32,
    /// Which virtio features a device of it can have; 0 when it does not say.
    pub features: u64,
}

/// A device on the vDPA bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// What made it.
    pub management_device: String,
    /// The virtio device id.
    pub device_id: u32,
    /// The virtio vendor id.
    pub vendor_id: u32,
    /// How many virtqueues it has.
    pub queues: u32,
    /// The largest virtqueue, in descriptors.
    pub max_queue_size: u16,
    /// The smallest virtqueue, in descriptors.
    pub min_queue_size: u16,
}

/// What a device's configuration space says; what it does not have is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// The device's name.
    pub name: String,
    /// The virtio device id.
    pub device_id: u32,
    /// The features it offers.
    pub features: u64,
    /// The features that the driver accepted, once it has.
    pub negotiated_features: Option<u64>,
    /// A disk's capacity in sectors of 512 bytes.
    pub blk_capacity: Option<u64>,
    /// A disk's block size in bytes.
    pub blk_block_size: Option<u32>,
    /// The most segments a request to a disk can have.
    pub blk_segments: Option<u32>,
    /// How many queues a disk has.
    pub blk_queues: Option<u16>,
    /// Whether a disk can only be read.
    pub blk_read_only: Option<bool>,
    /// A network device's address.
    pub net_mac: Option<[u8; 6]>,
    /// The largest packet of a network device.
    pub net_mtu: Option<u16>,
    /// How many pairs of queues a network device has.
    pub net_queue_pairs: Option<u16>,
}

impl Vdpa {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the kernel's vDPA core is not loaded.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let family = resolve(&socket)?;
        Ok(Self { socket, family })
    }

    /// Puts a device on the bus.
    ///
    /// # Errors
    ///
    /// What the management device says; `ENODEV` when there is none of this name.
    pub fn add(&self, name: &str, management_device: &str) -> io::Result<()> {
        self.command(
            Command::DevNew,
            &[
                (Attribute::DevName, name),
                (Attribute::MgmtdevDevName, management_device),
            ],
        )
    }

    /// Takes a device off the bus.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none of this name.
    pub fn delete(&self, name: &str) -> io::Result<()> {
        self.command(Command::DevDel, &[(Attribute::DevName, name)])
    }

    /// A device on the bus.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none of this name.
    pub fn device(&self, name: &str) -> io::Result<DeviceInfo> {
        let answer = self.get(Command::DevGet, Attribute::DevName, name)?;
        DeviceInfo::from_attributes(&answer)
    }

    /// All devices on the bus.
    pub fn devices(&self) -> io::Result<Vec<DeviceInfo>> {
        self.dump(Command::DevGet)?
            .iter()
            .map(DeviceInfo::from_attributes)
            .collect()
    }

    /// A device's configuration space, as far as the core understands it.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none of this name, `EOPNOTSUPP` when it is of a kind that the core
    /// does not know.
    pub fn config(&self, name: &str) -> io::Result<DeviceConfig> {
        let answer = self.get(Command::DevConfigGet, Attribute::DevName, name)?;
        DeviceConfig::from_attributes(&answer)
    }

    /// A management device that is on no bus.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none of this name.
    pub fn management_device(&self, name: &str) -> io::Result<ManagementDevice> {
        let answer = self.get(Command::MgmtdevGet, Attribute::MgmtdevDevName, name)?;
        ManagementDevice::from_attributes(&answer)
    }

    /// All management devices.
    pub fn management_devices(&self) -> io::Result<Vec<ManagementDevice>> {
        self.dump(Command::MgmtdevGet)?
            .iter()
            .map(ManagementDevice::from_attributes)
            .collect()
    }

    fn request(
        &self,
        command: Command,
        flags: u16,
        attributes: &[(Attribute, &str)],
    ) -> io::Result<Vec<Attributes>> {
        let payload = Message {
            command: command as u8,
            attributes: Attributes::of_strings(attributes)?,
        };
        let mut message = GenlMessage::from_payload(payload);
        message.set_resolved_family_id(self.family);
        let answers = exchange(&self.socket, message, flags)?;
        Ok(answers.into_iter().map(|m| m.attributes).collect())
    }

    fn command(&self, command: Command, attributes: &[(Attribute, &str)]) -> io::Result<()> {
        self.request(command, NLM_F_ACK, attributes).map(drop)
    }

    fn get(&self, command: Command, key: Attribute, name: &str) -> io::Result<Attributes> {
        // With an acknowledgement, the end of the answer is told in the same way for all commands.
        self.request(command, NLM_F_ACK, &[(key, name)])?
            .pop()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an empty answer"))
    }

    fn dump(&self, command: Command) -> io::Result<Vec<Attributes>> {
        self.request(command, NLM_F_DUMP, &[])
    }
}

/// Asks for the family's number.
fn resolve(socket: &Socket) -> io::Result<u16> {
    let message = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
    });
    exchange(socket, message, NLM_F_ACK)?
        .into_iter()
        .flat_map(|answer| answer.nlas)
        .find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a family without a number"))
}

/// Sends a message, and reads answers until an acknowledgement, an error or the end of a dump.
fn exchange<F>(socket: &Socket, message: GenlMessage<F>, flags: u16) -> io::Result<Vec<F>>
where
    F: message::Family,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let answer = NetlinkMessage::<GenlMessage<F>>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner.payload),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
            // Messages are aligned to four bytes.
            let length = (answer.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
