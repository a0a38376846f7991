// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device takes from a ring.

use crate::virtqueue::error::Error;

/// What a device has taken from a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// A request.
    Request,
    /// A request with a buffer that is not mapped. The chain has its id, and maybe some buffers.
    Unmapped,
    /// Nothing, as there was no request.
    Nothing,
}

/// Returns the result of a walk, for which a buffer that is not mapped is no error of the ring.
#[inline]
pub(super) fn unless_unmapped(walked: Result<(), Error>) -> Result<Taken, Error> {
    match walked {
        Ok(()) => Ok(Taken::Request),
        Err(Error::Unmapped(..)) => Ok(Taken::Unmapped),
        Err(error) => Err(error),
    }
}
