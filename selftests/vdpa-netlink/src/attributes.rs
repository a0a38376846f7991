// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Netlink attributes, and the conversion from them to the types of this crate.

use std::io;

use netlink_packet_core::{DecodeError, DefaultNla, Emitable, Nla, NlasIterator, Parseable};

use crate::info::{DeviceConfig, DeviceInfo, ManagementDevice};

/// The attributes' numbers (`enum vdpa_attr` in `include/uapi/linux/vdpa.h`).
#[derive(Clone, Copy, Debug)]
#[repr(u16)]
pub(crate) enum Attribute {
    MgmtdevBusName = 1,
    MgmtdevDevName = 2,
    MgmtdevSupportedClasses = 3,
    DevName = 4,
    DevId = 5,
    DevVendorId = 6,
    DevMaxVqs = 7,
    DevMaxVqSize = 8,
    DevMinVqSize = 9,
    NetMac = 10,
    NetMaxVqp = 12,
    NetMtu = 13,
    NegotiatedFeatures = 14,
    MgmtdevMaxVqs = 15,
    SupportedFeatures = 16,
    Features = 20,
    BlkCapacity = 21,
    BlkBlockSize = 23,
    BlkSegMax = 24,
    BlkQueues = 25,
    BlkReadOnly = 35,
}

/// The attributes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    list: Vec<DefaultNla>,
}

impl Attributes {
    pub(crate) fn of_strings(strings: &[(Attribute, &str)]) -> io::Result<Self> {
        let list = strings
            .iter()
            .map(|&(attribute, text)| {
                let text = std::ffi::CString::new(text)?;
                Ok(DefaultNla::new(
                    attribute as u16,
                    text.into_bytes_with_nul(),
                ))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { list })
    }

    pub(crate) fn parse(buffer: &[u8]) -> Result<Self, DecodeError> {
        let list = NlasIterator::new(buffer)
            .map(|nla| DefaultNla::parse(&nla?))
            .collect::<Result<_, _>>()?;
        Ok(Self { list })
    }

    pub(crate) fn buffer_len(&self) -> usize {
        self.list.as_slice().buffer_len()
    }

    pub(crate) fn emit(&self, buffer: &mut [u8]) {
        self.list.as_slice().emit(buffer)
    }

    fn value(&self, attribute: Attribute) -> Option<Vec<u8>> {
        let nla = self
            .list
            .iter()
            .find(|nla| nla.kind() == attribute as u16)?;
        let mut value = vec![0; nla.value_len()];
        nla.emit_value(&mut value);
        Some(value)
    }

    fn array<const N: usize>(&self, attribute: Attribute) -> Option<[u8; N]> {
        self.value(attribute)?.try_into().ok()
    }

    fn u8(&self, attribute: Attribute) -> Option<u8> {
        self.array(attribute).map(u8::from_ne_bytes)
    }

    fn u16(&self, attribute: Attribute) -> Option<u16> {
        self.array(attribute).map(u16::from_ne_bytes)
    }

    fn u32(&self, attribute: Attribute) -> Option<u32> {
        self.array(attribute).map(u32::from_ne_bytes)
    }

    fn u64(&self, attribute: Attribute) -> Option<u64> {
        self.array(attribute).map(u64::from_ne_bytes)
    }

    fn string(&self, attribute: Attribute) -> Option<String> {
        let value = self.value(attribute)?;
        let text = value.strip_suffix(&[0]).unwrap_or(&value);
        String::from_utf8(text.to_vec()).ok()
    }
}

fn need<T>(value: Option<T>) -> io::Result<T> {
    value.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an attribute is missing"))
}

impl ManagementDevice {
    pub(crate) fn from_attributes(from: &Attributes) -> io::Result<Self> {
        Ok(Self {
            bus: from.string(Attribute::MgmtdevBusName),
            name: need(from.string(Attribute::MgmtdevDevName))?,
            classes: need(from.u64(Attribute::MgmtdevSupportedClasses))?,
            max_queues: from.u32(Attribute::MgmtdevMaxVqs).unwrap_or(0),
            features: from.u64(Attribute::SupportedFeatures).unwrap_or(0),
        })
    }
}

impl DeviceInfo {
    pub(crate) fn from_attributes(from: &Attributes) -> io::Result<Self> {
        Ok(Self {
            name: need(from.string(Attribute::DevName))?,
            management_device: need(from.string(Attribute::MgmtdevDevName))?,
            device_id: need(from.u32(Attribute::DevId))?,
            vendor_id: need(from.u32(Attribute::DevVendorId))?,
            queues: need(from.u32(Attribute::DevMaxVqs))?,
            max_queue_size: need(from.u16(Attribute::DevMaxVqSize))?,
            min_queue_size: need(from.u16(Attribute::DevMinVqSize))?,
        })
    }
}

impl DeviceConfig {
    pub(crate) fn from_attributes(from: &Attributes) -> io::Result<Self> {
        Ok(Self {
            name: need(from.string(Attribute::DevName))?,
            device_id: need(from.u32(Attribute::DevId))?,
            features: need(from.u64(Attribute::Features))?,
            negotiated_features: from.u64(Attribute::NegotiatedFeatures),
            blk_capacity: from.u64(Attribute::BlkCapacity),
            blk_block_size: from.u32(Attribute::BlkBlockSize),
            blk_segments: from.u32(Attribute::BlkSegMax),
            blk_queues: from.u16(Attribute::BlkQueues),
            blk_read_only: from.u8(Attribute::BlkReadOnly).map(|ro| ro != 0),
            net_mac: from.array(Attribute::NetMac),
            net_mtu: from.u16(Attribute::NetMtu),
            net_queue_pairs: from.u16(Attribute::NetMaxVqp),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_go_out_with_their_nul_and_come_back_without() {
        let sent = Attributes::of_strings(&[
            (Attribute::DevName, "disk0"),
            (Attribute::MgmtdevDevName, "vduse"),
        ])
        .unwrap();
        let mut buffer = vec![0xff; sent.buffer_len()];
        sent.emit(&mut buffer);
        assert_eq!(buffer[..12], *b"\x0a\0\x04\0disk0\0\0\0");
        let back = Attributes::parse(&buffer).unwrap();
        assert_eq!(back, sent);
        assert_eq!(back.string(Attribute::DevName).unwrap(), "disk0");
        assert_eq!(back.string(Attribute::MgmtdevBusName), None);
    }

    #[test]
    fn a_number_of_the_wrong_length_is_none() {
        let attributes = Attributes {
            list: vec![DefaultNla::new(Attribute::DevId as u16, vec![1, 2])],
        };
        assert_eq!(attributes.u32(Attribute::DevId), None);
        assert!(DeviceInfo::from_attributes(&attributes).is_err());
    }

    #[test]
    fn a_name_with_nul_is_refused() {
        assert!(Attributes::of_strings(&[(Attribute::DevName, "a\0b")]).is_err());
    }
}
