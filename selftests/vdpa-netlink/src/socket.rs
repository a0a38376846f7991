// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The socket to the vDPA core.

use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::GenlMessage;
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

use crate::attributes::{Attribute, Attributes};
use crate::info::{DeviceConfig, DeviceInfo, ManagementDevice};
use crate::message::{Command, Family, Message, FAMILY};

/// A socket to the vDPA core.
#[derive(Debug)]
pub struct Vdpa {
    socket: Socket,
    family: u16,
}

impl Vdpa {
    /// Opens a socket to the vDPA core.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the kernel's vDPA core is not loaded.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> std::io::Result<()> {
    /// let vdpa = vdpa_netlink::Vdpa::open()?;
    /// for device in vdpa.devices()? {
    ///     println!("{}: {} virtqueues", device.name, device.queues);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let family = resolve(&socket)?;
        Ok(Self { socket, family })
    }

    /// Tells a management device to create a device and to put it on the vDPA bus.
    ///
    /// # Errors
    ///
    /// `ENODEV` when no management device of this name exists; otherwise the error that the
    /// management device returns.
    pub fn add(&self, name: &str, management_device: &str) -> io::Result<()> {
        self.command(
            Command::DevNew,
            &[
                (Attribute::DevName, name),
                (Attribute::MgmtdevDevName, management_device),
            ],
        )
    }

    /// Removes a device from the vDPA bus.
    ///
    /// # Errors
    ///
    /// `ENODEV` when no device of this name exists.
    pub fn delete(&self, name: &str) -> io::Result<()> {
        self.command(Command::DevDel, &[(Attribute::DevName, name)])
    }

    /// Returns information about a device on the vDPA bus.
    ///
    /// # Errors
    ///
    /// `ENODEV` when no device of this name exists.
    pub fn device(&self, name: &str) -> io::Result<DeviceInfo> {
        let answer = self.get(Command::DevGet, Attribute::DevName, name)?;
        DeviceInfo::from_attributes(&answer)
    }

    /// Returns information about all devices on the vDPA bus.
    ///
    /// # Errors
    ///
    /// `InvalidData` when the kernel's reply is malformed; otherwise the error of the socket or the
    /// kernel.
    pub fn devices(&self) -> io::Result<Vec<DeviceInfo>> {
        self.dump(Command::DevGet)?
            .iter()
            .map(DeviceInfo::from_attributes)
            .collect()
    }

    /// Returns the fields of a device's configuration space that the vDPA core knows.
    ///
    /// # Errors
    ///
    /// `ENODEV` when no device of this name exists, `EOPNOTSUPP` when the core does not know the
    /// device's type.
    pub fn config(&self, name: &str) -> io::Result<DeviceConfig> {
        let answer = self.get(Command::DevConfigGet, Attribute::DevName, name)?;
        DeviceConfig::from_attributes(&answer)
    }

    /// Returns information about a management device that is not on a bus.
    ///
    /// # Errors
    ///
    /// `ENODEV` when no management device of this name exists.
    pub fn management_device(&self, name: &str) -> io::Result<ManagementDevice> {
        let answer = self.get(Command::MgmtdevGet, Attribute::MgmtdevDevName, name)?;
        ManagementDevice::from_attributes(&answer)
    }

    /// Returns information about all management devices.
    ///
    /// # Errors
    ///
    /// `InvalidData` when the kernel's reply is malformed; otherwise the error of the socket or the
    /// kernel.
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
        // Request an acknowledgement, so that every reply ends with an acknowledgement.
        self.request(command, NLM_F_ACK, &[(key, name)])?
            .pop()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an empty answer"))
    }

    fn dump(&self, command: Command) -> io::Result<Vec<Attributes>> {
        self.request(command, NLM_F_DUMP, &[])
    }
}

/// Asks the kernel for the number of the vDPA family.
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

/// Sends a message, and reads replies until an acknowledgement, an error or the end of a dump.
fn exchange<F>(socket: &Socket, message: GenlMessage<F>, flags: u16) -> io::Result<Vec<F>>
where
    F: Family,
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
            // Netlink aligns messages to four bytes.
            let length = (answer.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
