// SPDX-License-Identifier: GPL-2.0

//! The random choice of the next operation.

use crate::lab::assert::random::Random;
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::kernel::memory::PAGE;
use crate::tests::model::expected::Model;
use crate::tests::model::operation::{offered, Op, FILES, GROUPS, QUEUES, SPACES};

/// The values that a client may write to the device status. Each write takes one of them at random.
const STATUSES: [u8; 6] = [
    RESET,
    RESET,
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    UP_TO_FEATURES_OK,
    UP_TO_DRIVER_OK,
];

impl Model {
    /// Chooses the next operation at random.
    pub(super) fn choose(&self, random: &mut Random) -> Op {
        let mut below = |end: u64| random.below(end);
        // On average, three of four chosen indexes are valid.
        let queue = below(u64::from(QUEUES) * 4) as u32;
        let queue = match queue / QUEUES {
            3 => [QUEUES, u32::MAX, 0x1_0000, GROUPS][(queue % QUEUES) as usize],
            _ => queue % QUEUES,
        };
        let asid = below(u64::from(SPACES) * 6) as u32;
        let asid = match asid / SPACES {
            5 => [SPACES, u32::MAX, 0x1_0000][(asid % SPACES) as usize],
            _ => asid % SPACES,
        };
        let group = below(u64::from(GROUPS) + 1) as u32;
        let iova = (1 + below(16)) * PAGE;
        let (first, last) = (below(20) * PAGE, below(20) * PAGE + PAGE - 1);
        let bit = |n: u64| n == 0;
        if self.client.is_none() && below(4) == 0 {
            return if self.attached { Op::Open } else { Op::Attach };
        }
        if let Some(client) = &self.client {
            if !client.owned && below(4) == 0 {
                return Op::Own;
            }
            if !client.asids && below(4) == 0 {
                return Op::Backend;
            }
            if below(3) != 0 {
                return match below(38) {
                    0 => Op::Close,
                    1 => Op::Own,
                    2 => Op::Group { queue },
                    3..=6 => Op::Move {
                        group: if below(8) == 0 {
                            queue
                        } else {
                            below(3) as u32
                        },
                        asid,
                    },
                    7..=13 => Op::Map {
                        asid,
                        iova,
                        file: below(FILES as u64) as usize,
                        pages: 1 + below(3),
                        access: 1 + below(3) as u8,
                    },
                    14..=17 => Op::Unmap {
                        asid,
                        iova,
                        pages: 1 + below(6),
                    },
                    18 => Op::Begin { asid },
                    // Ends the current batch often, so that batches are short.
                    19..=21 => Op::End {
                        asid: client.batch.unwrap_or(asid),
                    },
                    22..=25 => Op::Status(STATUSES[below(6) as usize]),
                    26 => Op::SetFeatures(offered() & (feature::ACCESS_PLATFORM | below(1 << 32))),
                    27 => Op::Size {
                        queue,
                        size: [0, 1, 3, 8, 256, 512, 0x1_0000][below(7) as usize],
                    },
                    28..=29 => Op::Address { queue, at: iova },
                    30 => Op::Base {
                        queue,
                        base: below(0x1_1000) as u32,
                    },
                    31 => Op::State { queue },
                    32..=33 => Op::Suspend,
                    34 => Op::Resume,
                    // While the daemon refuses requests, a client must not enable or disable a
                    // virtqueue, because a refusal would break the device. So let the daemon agree
                    // to requests again.
                    _ if self.refuse => Op::Refuse(false),
                    _ => Op::Enable {
                        queue,
                        ready: below(4) != 0,
                    },
                };
            }
        }
        match below(40) {
            0 => Op::CreateAgain,
            1 => Op::CreateBad {
                groups: [0, 1, 0x1_0000][below(3) as usize],
                spaces: [0, 0x1_0000, u32::MAX][below(3) as usize],
                version: below(2),
            },
            2 => Op::Destroy,
            3 => Op::OpenAgain,
            4 if below(4) == 0 => Op::Renew,
            5..=11 => Op::SetUp {
                queue,
                size: [64, 128, 256][below(3) as usize],
                group,
                reserved: bit(below(8)),
            },
            12..=15 => Op::QueueInfo { queue },
            16 => Op::Features,
            17..=18 => Op::Interrupt { queue },
            19..=26 => Op::Find {
                asid,
                first,
                last,
                reserved: bit(below(8)),
            },
            27..=29 => Op::FindOld { first, last },
            30..=33 => Op::Info { asid, first, last },
            34 => Op::Register { asid },
            35 => Op::Deregister { asid },
            36 => Op::Refuse(true),
            _ => Op::Refuse(false),
        }
    }
}
