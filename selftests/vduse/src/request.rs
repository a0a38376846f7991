// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests that the kernel sends to a device, and the device's answers.

use vduse_uapi as uapi;

/// A request from the kernel. The answer has the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The request's id. No two requests that wait for an answer have the same id.
    pub id: u32,
    /// The kind of request, with its parameters.
    pub kind: Kind,
}

/// The kinds of requests, with their parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel asks for the device's position in a virtqueue that is not in use.
    GetVqState {
        /// The index of the virtqueue.
        index: u32,
    },
    /// The driver wrote the device status (virtio 1.3, section 2.1). Status 0 resets the device.
    SetStatus(u8),
    /// The mappings of the IOVAs from `first` to `last` have changed.
    UpdateIotlb {
        /// First IOVA.
        first: u64,
        /// Last IOVA.
        last: u64,
        /// The address space; 0 on a device of version 0.
        asid: u32,
    },
    /// The driver moves a virtqueue group to another address space (version 1).
    SetGroupAsid {
        /// The virtqueue group.
        group: u32,
        /// The address space.
        asid: u32,
    },
    /// The driver enables or disables a virtqueue ([`uapi::F_QUEUE_READY`]).
    SetVqReady {
        /// The index of the virtqueue.
        index: u32,
        /// Whether the driver enables the virtqueue.
        ready: bool,
    },
    /// The device must stop processing virtqueues ([`uapi::F_SUSPEND`]). Before it answers, the
    /// device completes the requests that it has begun.
    Suspend,
    /// The device must process virtqueues again ([`uapi::extension::F_RESUME`]).
    Resume,
    /// A request type that this library does not know. The answer should be [`Answer::Failed`].
    Unknown(u32),
}

impl From<uapi::DevRequest> for Request {
    fn from(request: uapi::DevRequest) -> Self {
        let kind = match request.kind {
            uapi::GET_VQ_STATE => Kind::GetVqState {
                index: request.body.vq_index(),
            },
            uapi::SET_STATUS => Kind::SetStatus(request.body.status()),
            uapi::UPDATE_IOTLB => {
                let (first, last) = request.body.iova_range();
                // On a device of version 0, the kernel leaves the bytes of the ASID at 0.
                let asid = request.body.iova_asid();
                Kind::UpdateIotlb { first, last, asid }
            }
            uapi::SET_VQ_GROUP_ASID => {
                let (group, asid) = request.body.group_asid();
                Kind::SetGroupAsid { group, asid }
            }
            uapi::SET_VQ_READY => {
                let (index, ready) = request.body.vq_ready();
                Kind::SetVqReady { index, ready }
            }
            uapi::SUSPEND => Kind::Suspend,
            uapi::extension::RESUME => Kind::Resume,
            other => Kind::Unknown(other),
        };
        Self {
            id: request.request_id,
            kind,
        }
    }
}

/// The answer to a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request was carried out.
    Ok,
    /// The request was not carried out.
    Failed,
    /// Answer to [`Kind::GetVqState`]: the available-ring entry that the device will process next.
    SplitState {
        /// The index of the virtqueue.
        index: u32,
        /// The index of the available-ring entry that the device will process next.
        next_avail: u16,
    },
    /// Answer to [`Kind::GetVqState`] when the driver has negotiated packed virtqueues.
    PackedState {
        /// The index of the virtqueue.
        index: u32,
        /// The device's position in the virtqueue.
        state: uapi::PackedState,
    },
}

impl Answer {
    /// Converts the answer to the ABI's structure.
    pub fn to_abi(self, request_id: u32) -> uapi::DevResponse {
        let (result, body) = match self {
            Self::Ok => (uapi::REQ_RESULT_OK, uapi::ResponseBody::default()),
            Self::Failed => (uapi::REQ_RESULT_FAILED, uapi::ResponseBody::default()),
            Self::SplitState { index, next_avail } => (
                uapi::REQ_RESULT_OK,
                uapi::ResponseBody::from_vq_state(
                    index,
                    uapi::VqStateUnion::from_split(next_avail),
                ),
            ),
            Self::PackedState { index, state } => (
                uapi::REQ_RESULT_OK,
                uapi::ResponseBody::from_vq_state(index, uapi::VqStateUnion::from_packed(state)),
            ),
        };
        uapi::DevResponse {
            request_id,
            result,
            reserved: [0; 4],
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: u32, body: uapi::RequestBody) -> Kind {
        Request::from(uapi::DevRequest {
            kind,
            request_id: 7,
            reserved: [0; 4],
            body,
        })
        .kind
    }

    #[test]
    fn every_kind_is_told_apart() {
        assert_eq!(
            parse(uapi::GET_VQ_STATE, uapi::RequestBody::from_vq_index(3)),
            Kind::GetVqState { index: 3 }
        );
        assert_eq!(
            parse(uapi::SET_STATUS, uapi::RequestBody::from_status(15)),
            Kind::SetStatus(15)
        );
        assert_eq!(
            parse(
                uapi::UPDATE_IOTLB,
                uapi::RequestBody::from_iova_range(1, u64::MAX)
            ),
            Kind::UpdateIotlb {
                first: 1,
                last: u64::MAX,
                asid: 0
            }
        );
        assert_eq!(
            parse(
                uapi::SET_VQ_GROUP_ASID,
                uapi::RequestBody::from_group_asid(1, 2)
            ),
            Kind::SetGroupAsid { group: 1, asid: 2 }
        );
        assert_eq!(
            parse(
                uapi::SET_VQ_READY,
                uapi::RequestBody::from_vq_ready(5, true)
            ),
            Kind::SetVqReady {
                index: 5,
                ready: true
            }
        );
        assert_eq!(
            parse(uapi::SUSPEND, uapi::RequestBody::default()),
            Kind::Suspend
        );
        assert_eq!(
            parse(uapi::extension::RESUME, uapi::RequestBody::default()),
            Kind::Resume
        );
        assert_eq!(parse(99, uapi::RequestBody::default()), Kind::Unknown(99));
    }

    #[test]
    fn a_state_goes_into_the_answer() {
        let abi = Answer::SplitState {
            index: 1,
            next_avail: 0xabcd,
        }
        .to_abi(9);
        assert_eq!((abi.request_id, abi.result), (9, uapi::REQ_RESULT_OK));
        let (index, state) = abi.body.vq_state();
        assert_eq!((index, state.split()), (1, 0xabcd));
        assert_eq!(Answer::Failed.to_abi(9).result, uapi::REQ_RESULT_FAILED);
    }
}
