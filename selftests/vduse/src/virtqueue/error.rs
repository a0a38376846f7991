// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors in a virtqueue.

use std::{fmt, io};

/// An error in a virtqueue. Except for an unmapped ring in [`Virtqueue::set_memory`](crate::virtqueue::Virtqueue::set_memory), the device cannot serve the virtqueue until the driver has reset it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The size is 0, too large, or not a power of 2 in a split virtqueue.
    Size(u16),
    /// The position is that of the other kind of virtqueue, or is outside the virtqueue.
    Position,
    /// A ring is not aligned.
    Misaligned(u64),
    /// A ring or a buffer is not mapped, or not with the permissions that the device needs.
    Unmapped(u64, io::Error),
    /// A ring is spread over several regions of the IOTLB.
    Scattered(u64),
    /// The driver has made more requests available than the virtqueue has entries.
    TooManyAvailable,
    /// The index of a descriptor is outside its table.
    BadIndex(u16),
    /// A chain of descriptors is circular, or longer than its table.
    EndlessChain,
    /// A descriptor refers to an indirect table where it must not, or the table's length is not a
    /// multiple of a descriptor's.
    BadIndirect,
    /// A device-readable descriptor follows a device-writable one.
    ReadableAfterWritable,
    /// The buffers of a request have 2^32 bytes or more.
    TooLong,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "a virtqueue cannot have {size} entries"),
            Self::Position => f.write_str("the position is not one in this virtqueue"),
            Self::Misaligned(iova) => write!(f, "the ring at {iova:#x} is not aligned"),
            Self::Unmapped(iova, error) => write!(f, "{iova:#x} cannot be accessed: {error}"),
            Self::Scattered(iova) => write!(f, "the ring at {iova:#x} is not in one region"),
            Self::TooManyAvailable => f.write_str("more requests available than entries"),
            Self::BadIndex(index) => write!(f, "there is no descriptor {index}"),
            Self::EndlessChain => f.write_str("a chain of descriptors has no end"),
            Self::BadIndirect => f.write_str("an indirect table where none can be"),
            Self::ReadableAfterWritable => {
                f.write_str("a readable descriptor follows a writable one")
            }
            Self::TooLong => f.write_str("a request of 4 GiB or more"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unmapped(_, error) => Some(error),
            _ => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}
