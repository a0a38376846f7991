// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR BSD-3-Clause

//! A check at compile time that the structures of the ABI have no padding: every byte is part of a
//! field. A structure with padding does not compile. Only the kernel module needs this check, in
//! order to copy the structures from and to userspace.

use super::*;
use crate::bindings::pod::pod;

pod! {
    DevConfig {
        name: [u8; NAME_MAX],
        vendor_id: u32,
        device_id: u32,
        features: u64,
        vq_num: u32,
        vq_align: u32,
        ngroups: u32,
        nas: u32,
        reserved: [u32; 11],
        config_size: u32,
    }
    IotlbEntry { offset: u64, start: u64, last: u64, perm: u8, padding: [u8; 7] }
    IotlbEntryV2 {
        offset: u64,
        start: u64,
        last: u64,
        perm: u8,
        padding: [u8; 7],
        asid: u32,
        reserved: [u32; 11],
    }
    ConfigData { offset: u32, length: u32 }
    VqConfig { index: u32, max_size: u16, reserved1: u16, group: u32, reserved2: [u16; 10] }
    VqStateUnion { words: [u16; 4] }
    VqInfo {
        index: u32,
        num: u32,
        desc_addr: u64,
        driver_addr: u64,
        device_addr: u64,
        state: VqStateUnion,
        ready: u8,
        padding: [u8; 7],
    }
    VqEventfd { index: u32, fd: i32 }
    IovaUmem { uaddr: u64, iova: u64, size: u64, asid: u32, reserved: [u32; 5] }
    IovaInfo { start: u64, last: u64, capability: u64, asid: u32, reserved: [u32; 5] }
    RequestBody { words: [u64; 16] }
    DevRequest { kind: u32, request_id: u32, reserved: [u32; 4], body: RequestBody }
    ResponseBody { words: [u32; 32] }
    DevResponse { request_id: u32, result: u32, reserved: [u32; 4], body: ResponseBody }
    CompatU64 { words: [u32; 2] }
    CompatIotlbEntry {
        offset: CompatU64,
        start: CompatU64,
        last: CompatU64,
        perm: u8,
        padding: [u8; 3],
    }
    CompatVqInfo {
        index: u32,
        num: u32,
        desc_addr: CompatU64,
        driver_addr: CompatU64,
        device_addr: CompatU64,
        state: VqStateUnion,
        ready: u8,
        padding: [u8; 3],
    }
}
