// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that the layouts and numbers of `vduse-uapi` match the kernel's own header, both for
//! 64-bit and for 32-bit programs.
//!
//! The test generates C assertions from a table of the Rust definitions, and a C compiler checks
//! the assertions. The environment variable `VDUSE_UAPI_HEADER` names the header, which is a
//! kernel's `include/uapi/linux/vduse.h`. By default, the test uses the system's header.
//!
//! Another test compares the same table with the syzkaller description.

use std::fmt::Write as _;
use std::io::Write as _;
use std::mem::offset_of;
use std::process::{Command, Stdio};

use vduse_uapi::*;

mod syzlang;

/// The programs to which a definition applies: all, only 64-bit ones, or only 32-bit ones.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bits {
    All,
    Only64,
    Only32,
}

use Bits::{All, Only32, Only64};

/// The layout of a structure to check: the size of the Rust type, and the offset of each member in
/// that type.
struct Layout {
    bits: Bits,
    name: &'static str,
    size: usize,
    members: Vec<(&'static str, usize)>,
}

macro_rules! layouts {
    ($($bits:ident $name:ident = $ours:ty {
        $($($member:ident)? $(($path:literal))? = $field:ident),* $(,)?
    })*) => {
        vec![$(Layout {
            bits: $bits,
            name: stringify!($name),
            size: size_of::<$ours>(),
            members: vec![$((
                concat!($(stringify!($member))? $($path)?),
                offset_of!($ours, $field),
            )),*],
        }),*]
    };
}

fn layouts() -> Vec<Layout> {
    layouts! {
        All vduse_dev_config = DevConfig {
            name = name, vendor_id = vendor_id, device_id = device_id, features = features,
            vq_num = vq_num, vq_align = vq_align, ngroups = ngroups, nas = nas,
            reserved = reserved, config_size = config_size,
        }
        Only64 vduse_iotlb_entry = IotlbEntry {
            offset = offset, start = start, last = last, perm = perm,
        }
        Only32 vduse_iotlb_entry = CompatIotlbEntry {
            offset = offset, start = start, last = last, perm = perm,
        }
        All vduse_iotlb_entry_v2 = IotlbEntryV2 {
            offset = offset, start = start, last = last, perm = perm, padding = padding,
            asid = asid, reserved = reserved,
        }
        All vduse_config_data = ConfigData { offset = offset, length = length }
        All vduse_vq_config = VqConfig {
            index = index, max_size = max_size, reserved1 = reserved1, group = group,
            reserved2 = reserved2,
        }
        Only64 vduse_vq_info = VqInfo {
            index = index, num = num, desc_addr = desc_addr, driver_addr = driver_addr,
            device_addr = device_addr, ("split.avail_index") = state,
            ("packed.last_avail_counter") = state, ready = ready,
        }
        Only32 vduse_vq_info = CompatVqInfo {
            index = index, num = num, desc_addr = desc_addr, driver_addr = driver_addr,
            device_addr = device_addr, ("split.avail_index") = state,
            ("packed.last_avail_counter") = state, ready = ready,
        }
        All vduse_vq_state_packed = VqStateUnion {}
        All vduse_vq_eventfd = VqEventfd { index = index, fd = fd }
        All vduse_iova_umem = IovaUmem {
            uaddr = uaddr, iova = iova, size = size, asid = asid, reserved = reserved,
        }
        All vduse_iova_info = IovaInfo {
            start = start, last = last, capability = capability, asid = asid,
            reserved = reserved,
        }
        All vduse_dev_request = DevRequest {
            type = kind, request_id = request_id, reserved = reserved, padding = body,
        }
        All vduse_dev_response = DevResponse {
            request_id = request_id, result = result, reserved = reserved, padding = body,
        }
    }
}

/// Returns the offset of each union member. The offset is that of the first byte that changes when
/// the member is set.
fn union_members() -> Vec<(&'static str, &'static str, usize)> {
    fn only(bytes: &[u8]) -> usize {
        let first = bytes.iter().position(|&byte| byte != 0);
        first.expect("a member that is not 0")
    }
    let request = |body: RequestBody| {
        let bytes: Vec<u8> = body.words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        offset_of!(DevRequest, body) + only(&bytes)
    };
    let response = |index, state| {
        let body = ResponseBody::from_vq_state(index, state);
        let bytes: Vec<u8> = body.words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        offset_of!(DevResponse, body) + only(&bytes)
    };
    let packed = |counter, idx, used_counter, used_idx| {
        VqStateUnion::from_packed(PackedState {
            last_avail_counter: counter,
            last_avail_idx: idx,
            last_used_counter: used_counter,
            last_used_idx: used_idx,
        })
    };
    let none = VqStateUnion::default();
    let of_request = |member, body| ("vduse_dev_request", member, request(body));
    let of_response = |member, index, state| ("vduse_dev_response", member, response(index, state));
    // All bits are set, so that every byte of a member changes, whatever the byte order.
    let (ones16, ones32, ones64) = (u16::MAX, u32::MAX, u64::MAX);
    vec![
        of_request("vq_state.index", RequestBody::from_vq_index(ones32)),
        of_request("s.status", RequestBody::from_status(0xff)),
        of_request("iova.start", RequestBody::from_iova_range(ones64, 0)),
        of_request("iova.last", RequestBody::from_iova_range(0, ones64)),
        of_request(
            "iova_v2.start",
            RequestBody::from_iova_range_v2(ones64, 0, 0),
        ),
        of_request(
            "iova_v2.last",
            RequestBody::from_iova_range_v2(0, ones64, 0),
        ),
        of_request(
            "iova_v2.asid",
            RequestBody::from_iova_range_v2(0, 0, ones32),
        ),
        of_request(
            "vq_group_asid.group",
            RequestBody::from_group_asid(ones32, 0),
        ),
        of_request(
            "vq_group_asid.asid",
            RequestBody::from_group_asid(0, ones32),
        ),
        of_request("vq_ready.num", RequestBody::from_vq_ready(ones32, false)),
        of_request("vq_ready.ready", RequestBody::from_vq_ready(0, true)),
        of_response("vq_state.index", ones32, none),
        of_response(
            "vq_state.split.avail_index",
            0,
            VqStateUnion::from_split(ones16),
        ),
        of_response(
            "vq_state.packed.last_avail_counter",
            0,
            packed(ones16, 0, 0, 0),
        ),
        of_response("vq_state.packed.last_avail_idx", 0, packed(0, ones16, 0, 0)),
        of_response(
            "vq_state.packed.last_used_counter",
            0,
            packed(0, 0, ones16, 0),
        ),
        of_response("vq_state.packed.last_used_idx", 0, packed(0, 0, 0, ones16)),
    ]
}

macro_rules! numbers {
    ($($bits:ident $name:ident = $ours:expr),* $(,)?) => {
        vec![$(($bits, stringify!($name), $ours as u64 & 0xffff_ffff)),*]
    };
}

fn numbers() -> Vec<(Bits, &'static str, u64)> {
    numbers![
        All VDUSE_API_VERSION = API_VERSION_0,
        All VDUSE_API_VERSION_1 = API_VERSION_1,
        All VDUSE_NAME_MAX = NAME_MAX,
        All VDUSE_ACCESS_RO = ACCESS_RO,
        All VDUSE_ACCESS_WO = ACCESS_WO,
        All VDUSE_ACCESS_RW = ACCESS_RW,
        All VDUSE_IOVA_CAP_UMEM = IOVA_CAP_UMEM,
        All VDUSE_EVENTFD_DEASSIGN = EVENTFD_DEASSIGN,
        All VDUSE_GET_VQ_STATE = GET_VQ_STATE,
        All VDUSE_SET_STATUS = SET_STATUS,
        All VDUSE_UPDATE_IOTLB = UPDATE_IOTLB,
        All VDUSE_SET_VQ_GROUP_ASID = SET_VQ_GROUP_ASID,
        All VDUSE_SET_VQ_READY = SET_VQ_READY,
        All VDUSE_SUSPEND = SUSPEND,
        All VDUSE_F_QUEUE_READY = F_QUEUE_READY.trailing_zeros(),
        All VDUSE_F_SUSPEND = F_SUSPEND.trailing_zeros(),
        All VDUSE_REQ_RESULT_OK = REQ_RESULT_OK,
        All VDUSE_REQ_RESULT_FAILED = REQ_RESULT_FAILED,
        All VDUSE_GET_API_VERSION = ioctl::GET_API_VERSION,
        All VDUSE_SET_API_VERSION = ioctl::SET_API_VERSION,
        All VDUSE_GET_FEATURES = ioctl::GET_FEATURES,
        All VDUSE_SET_FEATURES = ioctl::SET_FEATURES,
        All VDUSE_CREATE_DEV = ioctl::CREATE_DEV,
        All VDUSE_DESTROY_DEV = ioctl::DESTROY_DEV,
        Only64 VDUSE_IOTLB_GET_FD = ioctl::IOTLB_GET_FD,
        Only32 VDUSE_IOTLB_GET_FD = ioctl::COMPAT_IOTLB_GET_FD,
        All VDUSE_IOTLB_GET_FD2 = ioctl::IOTLB_GET_FD2,
        All VDUSE_DEV_GET_FEATURES = ioctl::DEV_GET_FEATURES,
        All VDUSE_DEV_SET_CONFIG = ioctl::DEV_SET_CONFIG,
        All VDUSE_DEV_INJECT_CONFIG_IRQ = ioctl::DEV_INJECT_CONFIG_IRQ,
        All VDUSE_VQ_SETUP = ioctl::VQ_SETUP,
        Only64 VDUSE_VQ_GET_INFO = ioctl::VQ_GET_INFO,
        Only32 VDUSE_VQ_GET_INFO = ioctl::COMPAT_VQ_GET_INFO,
        All VDUSE_VQ_SETUP_KICKFD = ioctl::VQ_SETUP_KICKFD,
        All VDUSE_VQ_INJECT_IRQ = ioctl::VQ_INJECT_IRQ,
        All VDUSE_IOTLB_REG_UMEM = ioctl::IOTLB_REG_UMEM,
        All VDUSE_IOTLB_DEREG_UMEM = ioctl::IOTLB_DEREG_UMEM,
        All VDUSE_IOTLB_GET_INFO = ioctl::IOTLB_GET_INFO,
    ]
}

/// Returns whether Linux 7.3 added `name` to the header.
fn is_new(name: &str) -> bool {
    let added = ["vq_ready", "VDUSE_F_", "VDUSE_S", "VDUSE_GET_FEATURES"];
    let before = [
        "VDUSE_SET_API_VERSION",
        "VDUSE_SET_STATUS",
        "VDUSE_SET_VQ_GROUP_ASID",
    ];
    added.iter().any(|added| name.starts_with(added)) && !before.contains(&name)
}

/// Returns a C program that compiles only if all layouts and numbers match the header. `new` says
/// whether the header is from Linux 7.3 or later.
fn program(header: &str, new: bool, bits: Bits) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("a string");
    line("#include <stddef.h>\n#include <linux/ioctl.h>".to_owned());
    line(format!("#include \"{header}\""));
    let wanted = |which: Bits| which == All || which == bits;
    let mut assert = |what: String, ours: u64| {
        line(format!(
            "_Static_assert({what} == {ours}u, \"{}\");",
            what.replace('"', "")
        ));
    };
    for layout in layouts().iter().filter(|layout| wanted(layout.bits)) {
        let name = layout.name;
        assert(format!("sizeof(struct {name})"), layout.size as u64);
        for (member, offset) in &layout.members {
            assert(format!("offsetof(struct {name}, {member})"), *offset as u64);
        }
    }
    for (name, member, offset) in union_members() {
        if new || !is_new(member) {
            assert(format!("offsetof(struct {name}, {member})"), offset as u64);
        }
    }
    for (_, name, number) in numbers().into_iter().filter(|number| wanted(number.0)) {
        if new || !is_new(name) {
            assert(format!("(unsigned int)({name})"), number);
        }
    }
    text
}

/// Compiles a program. On failure, returns the compiler's error output.
fn compile(program: &str, option: &str) -> Result<(), String> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
    let mut child = Command::new(&compiler)
        .args([option, "-std=gnu11", "-fsyntax-only", "-x", "c"])
        // On Debian, this directory also has the headers that 32-bit programs need.
        .args(["-isystem", "/usr/include/x86_64-linux-gnu", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{compiler}: {error}"))?;
    let mut stdin = child.stdin.take().expect("a pipe");
    // If the compiler exits early, writing fails, but the compiler's output says why.
    let _ = stdin.write_all(program.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the compiler's output");
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Returns the path of the header, and whether the header is from Linux 7.3 or later.
fn header() -> (String, bool) {
    const VARIABLE: &str = "VDUSE_UAPI_HEADER";
    let path = std::env::var(VARIABLE).unwrap_or_else(|_| "/usr/include/linux/vduse.h".to_owned());
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text.contains("VDUSE_API_VERSION_1"),
        "{path} has no version 1 of the API; {VARIABLE} names that of a kernel that has"
    );
    (path, text.contains("VDUSE_F_SUSPEND"))
}

#[track_caller]
fn check(bits: Bits, option: &str) {
    let (header, new) = header();
    let program = program(&header, new, bits);
    if let Err(said) = compile(&program, option) {
        panic!("{said}");
    }
    // The check must detect a wrong number.
    let wrong = program.replacen(" == ", " == 1u + ", 1);
    assert!(compile(&wrong, option).is_err());
}

#[test]
fn layouts_and_numbers_are_the_kernels_for_64_bit_programs() {
    check(Only64, "-m64");
}

#[test]
fn layouts_and_numbers_are_the_kernels_for_32_bit_programs() {
    check(Only32, "-m32");
}

/// Compares the syzkaller description with the layouts and with the numbers of the ioctls.
#[track_caller]
fn check_description(text: &str, bits: Bits) -> Result<(), String> {
    let description = syzlang::Description::parse(text, if bits == Only32 { 4 } else { 8 });
    let wanted = |which: Bits| which == All || which == bits;
    let same = |what: String, found: Option<u64>, ours: u64| match found {
        Some(found) if found == ours => Ok(()),
        _ => Err(format!("{what} is {found:?}, not {ours}")),
    };
    for layout in layouts().iter().filter(|layout| wanted(layout.bits)) {
        let name = layout.name;
        let size = description.size(name) as u64;
        same(name.to_owned(), Some(size), layout.size as u64)?;
        for &(member, offset) in &layout.members {
            let found = description.offset(name, member).map(|at| at as u64);
            same(format!("{name}.{member}"), found, offset as u64)?;
        }
    }
    for (name, member, offset) in union_members() {
        let found = description.offset(name, member).map(|at| at as u64);
        same(format!("{name}.{member}"), found, offset as u64)?;
    }
    // Of all the numbers in the table, only those of ioctls contain VDUSE's type byte.
    let is_ioctl = |number: u64| number >> 8 & 0xff == 0x81;
    for (_, name, number) in numbers().into_iter().filter(|number| wanted(number.0)) {
        if is_ioctl(number) {
            // Compare all bits except the command number and the type, which syzkaller takes from
            // the kernel's header.
            let found = description
                .argument(name)
                .map(|(direction, size)| u64::from(direction) << 30 | (size as u64) << 16);
            same(name.to_owned(), found, number & !0xffff)?;
        }
    }
    Ok(())
}

#[test]
fn the_description_for_syzkaller_has_the_same_layouts_and_all_ioctls() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../syzkaller/dev_vduse.txt");
    let text = std::fs::read_to_string(path).expect("the description");
    for bits in [Only64, Only32] {
        if let Err(wrong) = check_description(&text, bits) {
            panic!("{wrong}");
        }
        // The check must detect a wrong description.
        for (right, wrong) in [
            ("asid\t\tvduse_asid", "asid\t\tint64"),
            ("status\tint8\n", "state\tint8\n"),
            (
                "const[VDUSE_VQ_SETUP], arg ptr[in",
                "const[VDUSE_VQ_SETUP], arg ptr[out",
            ),
            ("ioctl$VDUSE_DEV_INJECT_CONFIG_IRQ", "# "),
        ] {
            assert!(text.contains(right), "{right}");
            let changed = text.replacen(right, wrong, 1);
            check_description(&changed, bits).expect_err(right);
        }
    }
}
