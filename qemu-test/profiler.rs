// SPDX-License-Identifier: GPL-2.0

//! A QEMU (TCG) plugin that counts the guest's instructions by function, for the rows of
//! vduse-bench. It counts every instruction and does not sample.
//!
//! `qemu-test/run --profile` builds and loads the plugin. The guest marks *windows*, in which the
//! plugin counts, by executing an instruction that does nothing:
//! `nop dword [rax + rax + 0x56445500 + window]`. Here, `window` is the number of the window that
//! the instruction opens. Number 0 closes the open window. For each window, the guest also writes a
//! file with the window's title, the number of operations in the window, and the addresses of the
//! guest's functions. The plugin writes its report when QEMU ends.
//!
//! The instructions of a block count for the function in which the block begins. A block is a unit
//! of QEMU's translation. It ends at a jump, at a call or at the end of a page.

#![warn(unsafe_op_in_unsafe_fn)]

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

/// The bytes of a mark for number 0. A mark is a `nop` with a 32-bit constant, whose lowest byte is
/// a window's number. Number 0 means no window.
const MARK: [u8; 8] = [0x0f, 0x1f, 0x84, 0x00, 0, 0x55, 0x44, 0x56];

/// Offset of the window's number in a mark.
const WINDOW: usize = 4;

/// Number of window numbers. The windows are numbered from 1. Number 0 means no window.
const WINDOWS: usize = 7;

/// Number of rows that a table of the report shows.
const SHOWN: usize = 60;

/// A translated block of QEMU, whose contents the plugin does not access.
#[repr(C)]
struct Block {
    _opaque: [u8; 0],
}
#[repr(C)]
struct Instruction {
    _opaque: [u8; 0],
}

type Id = u64;

/// Flag for a callback that does not access the guest's registers.
const NO_REGISTERS: c_int = 0;

// The plugin API, version 4 (`include/qemu/qemu-plugin.h` of QEMU 10.0).
extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, cb: extern "C" fn(Id, *mut Block));
    fn qemu_plugin_register_atexit_cb(
        id: Id,
        cb: extern "C" fn(Id, *mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
    fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    fn qemu_plugin_insn_data(insn: *const Instruction, to: *mut c_void, len: usize) -> usize;
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        cb: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Instruction,
        cb: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
}

/// The version of the plugin API that this plugin uses.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = 4;

/// A translated block, and how often the guest has executed it in each window.
struct Counted {
    address: u64,
    instructions: u64,
    times: [AtomicU64; WINDOWS],
}

/// All blocks. They are never freed.
static BLOCKS: Mutex<Vec<&'static Counted>> = Mutex::new(Vec::new());

/// Number of the open window, or 0 if no window is open.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// The directory in which the guest writes a file about each window, and the plugin writes its
/// report.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Loads the plugin. The only argument is `folder=PATH`.
///
/// # Safety
///
/// QEMU must call this function, with `argc` strings in `argv`.
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    for i in 0..argc as usize {
        // SAFETY: The caller guarantees that `argv` has `argc` strings.
        let argument = unsafe { CStr::from_ptr(*argv.add(i)) };
        if let Some(folder) = argument
            .to_str()
            .ok()
            .and_then(|a| a.strip_prefix("folder="))
        {
            let _ = FOLDER.set(folder.into());
        }
    }
    if FOLDER.get().is_none() {
        eprintln!("profiler: there is no folder=");
        return -1;
    }
    // SAFETY: The callbacks have the types that QEMU expects.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_atexit_cb(id, ended, std::ptr::null_mut());
    }
    0
}

extern "C" fn translated(_id: Id, block: *mut Block) {
    // SAFETY: QEMU's block and its instructions are valid during this call. The data of a callback
    // is either a number or a reference that is valid forever.
    unsafe {
        let instructions = qemu_plugin_tb_n_insns(block);
        let counted: &'static Counted = Box::leak(Box::new(Counted {
            address: qemu_plugin_tb_vaddr(block),
            instructions: instructions as u64,
            times: Default::default(),
        }));
        BLOCKS.lock().expect("the blocks").push(counted);
        let data = std::ptr::from_ref(counted).cast_mut().cast();
        qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, data);

        for i in 0..instructions {
            let insn = qemu_plugin_tb_get_insn(block, i);
            let mut bytes = [0; MARK.len()];
            let len = qemu_plugin_insn_data(insn, bytes.as_mut_ptr().cast(), bytes.len());
            let window = usize::from(std::mem::take(&mut bytes[WINDOW]));
            if len == MARK.len() && bytes == MARK && window < WINDOWS {
                let data = std::ptr::without_provenance_mut(window);
                qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, NO_REGISTERS, data);
            }
        }
    }
}

extern "C" fn executed(_cpu: c_uint, data: *mut c_void) {
    let window = OPEN.load(Relaxed);
    if window != 0 {
        // SAFETY: `data` is the reference that `translated` has registered, which is valid forever.
        let counted = unsafe { &*data.cast::<Counted>() };
        counted.times[window].fetch_add(1, Relaxed);
    }
}

extern "C" fn marked(_cpu: c_uint, data: *mut c_void) {
    OPEN.store(data.addr(), Relaxed);
}

extern "C" fn ended(_id: Id, _data: *mut c_void) {
    let folder = FOLDER.get().expect("a folder");
    if let Err(error) = std::fs::write(folder.join("profile"), report(folder)) {
        eprintln!("profiler: {error}");
    }
}

/// The contents of the file in which the guest describes a window.
struct Symbols {
    /// The window's title.
    title: String,
    /// Number of operations in the window.
    times: f64,
    /// The name and the module of each function, keyed by its address.
    functions: BTreeMap<u64, (String, String)>,
}

impl Symbols {
    /// Parses a file that consists of a line with the title, a line with the number of operations,
    /// and the contents of `/proc/kallsyms`. Returns [`None`] if the file cannot be read or parsed.
    fn read(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let mut lines = text.lines();
        let title = lines.next()?.to_owned();
        let times = lines.next()?.parse().ok()?;
        let function = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let is_function = words.next()?.eq_ignore_ascii_case("t");
            let name = words.next()?.to_owned();
            let module = words
                .next()
                .map_or("kernel", |m| m.trim_matches(['[', ']']));
            is_function.then(|| (address, (name, module.to_owned())))
        };
        Some(Self {
            title,
            times,
            functions: lines.filter_map(function).collect(),
        })
    }

    /// Returns the name and the module of the function at an address.
    fn find(&self, address: u64) -> (&str, &str) {
        if address >> 63 == 0 {
            return ("(all)", "processes");
        }
        let found = self.functions.range(..=address).next_back();
        found.map_or(("?", "?"), |(_, (name, module))| (name, module))
    }
}

/// Number of instructions per operation in each window, keyed by the module or the function.
type Sums = BTreeMap<String, [f64; WINDOWS]>;

/// Returns the report: one table by module and one by function.
fn report(folder: &Path) -> String {
    let blocks = BLOCKS.lock().expect("the blocks");
    let mut titles: [Option<String>; WINDOWS] = Default::default();
    let (mut modules, mut functions) = (Sums::new(), Sums::new());
    for window in 1..WINDOWS {
        let Some(symbols) = Symbols::read(&folder.join(format!("symbols.{window}"))) else {
            continue;
        };
        for block in blocks.iter() {
            let times = block.times[window].load(Relaxed);
            if times == 0 {
                continue;
            }
            let each = (times * block.instructions) as f64 / symbols.times;
            let (name, module) = symbols.find(block.address);
            modules.entry(module.to_owned()).or_default()[window] += each;
            functions.entry(format!("{module}: {name}")).or_default()[window] += each;
            modules.entry("all".to_owned()).or_default()[window] += each;
        }
        titles[window] = Some(symbols.title);
    }
    let mut text = String::new();
    for (what, sums) in [("module", modules), ("function", functions)] {
        table(&mut text, what, &titles, sums);
    }
    text
}

fn table(text: &mut String, what: &str, titles: &[Option<String>; WINDOWS], sums: Sums) {
    let columns = || (1..WINDOWS).filter_map(|i| Some((i, titles[i].as_ref()?)));
    let mut sums: Vec<_> = sums.into_iter().collect();
    let largest = |each: &[f64; WINDOWS]| each.iter().copied().fold(0.0, f64::max);
    sums.sort_by(|(_, a), (_, b)| largest(b).total_cmp(&largest(a)));
    text.push_str(&format!("| {what} |"));
    columns().for_each(|(_, title)| text.push_str(&format!(" {title} |")));
    text.push_str("\n|---|");
    columns().for_each(|_| text.push_str("---|"));
    text.push('\n');
    for (name, each) in sums.iter().take(SHOWN) {
        text.push_str(&format!("| {name} |"));
        columns().for_each(|(i, _)| text.push_str(&format!(" {:.0} |", each[i])));
        text.push('\n');
    }
    text.push('\n');
}
