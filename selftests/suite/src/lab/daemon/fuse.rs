// SPDX-License-Identifier: GPL-2.0

//! A FUSE server for the regular files of one directory, independent of the transport.
//!
//! The server keeps no state that a new server cannot rebuild. A node ID is the inode number of a
//! file in the exported directory. So a new server can serve the node IDs that the previous server
//! has reported to the kernel.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::mem::size_of;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fuse_abi::linux::{self as abi, fuse_opcode};
use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Maximum number of data bytes in a read or write request.
pub const MAX_DATA: usize = 256 << 10;

/// Maximum length of a request in bytes, including the header and the arguments before the data.
pub const MAX_REQUEST: usize = MAX_DATA + 4096;

/// Time in seconds for which the kernel may cache attributes and names.
const VALID: u64 = 3600;

/// Maximum number of bytes in the answer to one `READDIR`. It is small, so that even a directory
/// with few files needs several answers.
const MAX_LIST: usize = 4096;

/// Maximum length of a file name in bytes.
const MAX_NAME: usize = 255;

/// Codes of operations, named as in the ABI.
#[allow(missing_docs)]
pub mod op {
    use super::fuse_opcode as code;

    pub const LOOKUP: u32 = code::FUSE_LOOKUP as u32;
    pub const FORGET: u32 = code::FUSE_FORGET as u32;
    pub const GETATTR: u32 = code::FUSE_GETATTR as u32;
    pub const SETATTR: u32 = code::FUSE_SETATTR as u32;
    pub const OPEN: u32 = code::FUSE_OPEN as u32;
    pub const READ: u32 = code::FUSE_READ as u32;
    pub const WRITE: u32 = code::FUSE_WRITE as u32;
    pub const STATFS: u32 = code::FUSE_STATFS as u32;
    pub const RELEASE: u32 = code::FUSE_RELEASE as u32;
    pub const FSYNC: u32 = code::FUSE_FSYNC as u32;
    pub const FLUSH: u32 = code::FUSE_FLUSH as u32;
    pub const INIT: u32 = code::FUSE_INIT as u32;
    pub const OPENDIR: u32 = code::FUSE_OPENDIR as u32;
    pub const READDIR: u32 = code::FUSE_READDIR as u32;
    pub const RELEASEDIR: u32 = code::FUSE_RELEASEDIR as u32;
    pub const CREATE: u32 = code::FUSE_CREATE as u32;
    pub const DESTROY: u32 = code::FUSE_DESTROY as u32;
    pub const BATCH_FORGET: u32 = code::FUSE_BATCH_FORGET as u32;
}

/// A FUSE server of one directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Open files, by node ID.
    files: HashMap<u64, File>,
}

/// The data of an answer, or the error with which the request fails.
type Reply = io::Result<Vec<u8>>;

impl Directory {
    /// Creates a server of the directory `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: HashMap::new(),
        }
    }

    /// Executes a request, which may contain arbitrary bytes. Returns the answer, which has at most
    /// `room` bytes. An empty return value means that the request gets no answer.
    pub fn answer(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let Ok((header, body)) = abi::fuse_in_header::read_from_prefix(request) else {
            return Vec::new();
        };
        match header.opcode {
            op::FORGET => {
                self.files.remove(&header.nodeid);
                return Vec::new();
            }
            // The server may keep files open that the kernel has forgotten.
            op::BATCH_FORGET => return Vec::new(),
            _ => {}
        }
        let Some(room) = room.checked_sub(size_of::<abi::fuse_out_header>()) else {
            return Vec::new();
        };
        let reply = if header.len as usize == request.len() {
            self.reply(&header, body, room)
        } else {
            invalid()
        };
        let reply = reply.and_then(|data| {
            if data.len() <= room {
                Ok(data)
            } else {
                invalid()
            }
        });
        let (error, data) = match reply {
            Ok(data) => (0, data),
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                (-errno.raw_os_error(), Vec::new())
            }
        };
        let header = abi::fuse_out_header {
            // CAST: The length is less than `MAX_REQUEST`.
            len: (size_of::<abi::fuse_out_header>() + data.len()) as u32,
            error,
            unique: header.unique,
        };
        [header.as_bytes(), &data].concat()
    }

    fn reply(&mut self, header: &abi::fuse_in_header, body: &[u8], room: usize) -> Reply {
        let node = header.nodeid;
        match header.opcode {
            op::INIT => init(body),
            op::LOOKUP => {
                self.root(node)?;
                self.lookup(name(body)?)
            }
            op::GETATTR => self.attributes(node),
            op::SETATTR => self.set_attributes(node, exactly(body)?),
            op::OPEN | op::OPENDIR => {
                self.file(node)?;
                bytes(&opened())
            }
            op::CREATE => {
                self.root(node)?;
                let (arguments, rest) = arguments(body)?;
                self.create(&arguments, name(rest)?)
            }
            op::READ => self.read(node, &exactly(body)?, room),
            op::WRITE => {
                let (arguments, data) = arguments(body)?;
                self.write(node, &arguments, data)
            }
            op::READDIR => {
                self.root(node)?;
                self.list(&exactly(body)?, room)
            }
            op::STATFS => self.statistics(),
            op::FSYNC => {
                self.file(node)?.sync_all()?;
                Ok(Vec::new())
            }
            op::FLUSH | op::RELEASE | op::RELEASEDIR | op::DESTROY => Ok(Vec::new()),
            _ => Err(Errno::NOSYS.into()),
        }
    }

    /// Checks that `node` is the exported directory, which is the only node that contains files.
    /// Returns `ENOTDIR` for any other node.
    fn root(&self, node: u64) -> io::Result<()> {
        if node == abi::FUSE_ROOT_ID {
            Ok(())
        } else {
            Err(Errno::NOTDIR.into())
        }
    }

    /// Returns the node IDs and names of the regular files whose node IDs are greater than `after`,
    /// sorted by node ID.
    fn entries(&self, after: u64) -> io::Result<Vec<(u64, OsString)>> {
        let mut entries = Vec::new();
        for entry in self.path.read_dir()? {
            let entry = entry?;
            if entry.ino() > after && entry.file_type()?.is_file() {
                entries.push((entry.ino(), entry.file_name()));
            }
        }
        entries.sort();
        Ok(entries)
    }

    /// Opens the regular file called `name` in the directory.
    fn open(&self, options: &mut OpenOptions, name: &OsStr) -> io::Result<File> {
        let file = options
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(self.path.join(name))?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(Errno::PERM.into())
        }
    }

    /// Opens the file of a node. Returns `ESTALE` if the node does not exist.
    fn find(&self, node: u64) -> io::Result<File> {
        if node == abi::FUSE_ROOT_ID {
            return File::open(&self.path);
        }
        let entries = self.entries(node.saturating_sub(1))?;
        match entries.first() {
            Some((found, name)) if *found == node => self.open(&mut OpenOptions::new(), name),
            _ => Err(Errno::STALE.into()),
        }
    }

    /// Returns the open file of a node. Opens the file if necessary, and keeps it open.
    fn file(&mut self, node: u64) -> io::Result<&File> {
        let file = match self.files.remove(&node) {
            Some(file) => file,
            None => self.find(node)?,
        };
        Ok(self.files.entry(node).or_insert(file))
    }

    /// Returns the directory entry that describes a file to the kernel. Keeps the file open.
    fn tell(&mut self, file: File) -> io::Result<abi::fuse_entry_out> {
        let attr = attributes(&file)?;
        self.files.insert(attr.ino, file);
        Ok(abi::fuse_entry_out {
            nodeid: attr.ino,
            entry_valid: VALID,
            attr_valid: VALID,
            attr,
            ..Default::default()
        })
    }

    fn lookup(&mut self, name: &OsStr) -> Reply {
        let file = self.open(&mut OpenOptions::new(), name)?;
        bytes(&self.tell(file)?)
    }

    fn attributes(&mut self, node: u64) -> Reply {
        bytes(&abi::fuse_attr_out {
            attr_valid: VALID,
            attr: attributes(self.file(node)?)?,
            ..Default::default()
        })
    }

    /// Sets the size of a file, which also changes the file's times. Fails if the request sets any
    /// other attribute.
    fn set_attributes(&mut self, node: u64, what: abi::fuse_setattr_in) -> Reply {
        let with_size = abi::FATTR_FH
            | abi::FATTR_LOCKOWNER
            | abi::FATTR_KILL_SUIDGID
            | abi::FATTR_MTIME
            | abi::FATTR_MTIME_NOW
            | abi::FATTR_CTIME;
        if what.valid & !with_size != abi::FATTR_SIZE {
            return Err(Errno::OPNOTSUPP.into());
        }
        self.file(node)?.set_len(what.size)?;
        self.attributes(node)
    }

    fn create(&mut self, what: &abi::fuse_create_in, name: &OsStr) -> Reply {
        let flags = OFlags::from_bits_retain(what.flags);
        let file = self.open(
            OpenOptions::new()
                .create(true)
                .create_new(flags.contains(OFlags::EXCL))
                .truncate(flags.contains(OFlags::TRUNC))
                .mode(what.mode & 0o777),
            name,
        )?;
        let entry = self.tell(file)?;
        Ok([entry.as_bytes(), opened().as_bytes()].concat())
    }

    fn read(&mut self, node: u64, what: &abi::fuse_read_in, room: usize) -> Reply {
        let len = what.size as usize;
        if len > room || len > MAX_DATA {
            return invalid();
        }
        let file = self.file(node)?;
        let mut data = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = what.offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            match file.read_at(&mut data[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        data.truncate(done);
        Ok(data)
    }

    fn write(&mut self, node: u64, what: &abi::fuse_write_in, data: &[u8]) -> Reply {
        if what.size as usize != data.len() || data.len() > MAX_DATA {
            return invalid();
        }
        self.file(node)?.write_all_at(data, what.offset)?;
        bytes(&abi::fuse_write_out {
            size: what.size,
            ..Default::default()
        })
    }

    /// Returns the directory entries after the offset in the request. The offset of an entry is the
    /// file's node, which does not change when other files are created or deleted.
    fn list(&self, what: &abi::fuse_read_in, room: usize) -> Reply {
        let room = room.min(what.size as usize).min(MAX_LIST);
        let mut list = Vec::new();
        for (node, name) in self.entries(what.offset)? {
            let head = abi::fuse_dirent {
                ino: node,
                off: node,
                namelen: name.len() as u32,
                // `DT_REG`: a regular file.
                type_: 8,
                ..Default::default()
            };
            let len = size_of::<abi::fuse_dirent>() + name.len();
            if list.len() + len.next_multiple_of(8) > room {
                break;
            }
            list.extend_from_slice(head.as_bytes());
            list.extend_from_slice(name.as_bytes());
            list.resize(list.len().next_multiple_of(8), 0);
        }
        Ok(list)
    }

    fn statistics(&self) -> Reply {
        let found = rustix::fs::statvfs(&self.path)?;
        bytes(&abi::fuse_statfs_out {
            st: abi::fuse_kstatfs {
                blocks: found.f_blocks,
                bfree: found.f_bfree,
                bavail: found.f_bavail,
                files: found.f_files,
                ffree: found.f_ffree,
                bsize: found.f_bsize as u32,
                namelen: MAX_NAME as u32,
                frsize: found.f_frsize as u32,
                ..Default::default()
            },
        })
    }
}

/// Returns the answer to `INIT`, which negotiates the version of the FUSE protocol and the maximum
/// number of data bytes in a request.
fn init(body: &[u8]) -> Reply {
    let (theirs, _) = arguments::<abi::fuse_init_in>(body)?;
    if theirs.major != abi::FUSE_KERNEL_VERSION {
        return Err(Errno::PROTO.into());
    }
    bytes(&abi::fuse_init_out {
        major: abi::FUSE_KERNEL_VERSION,
        minor: theirs.minor.min(abi::FUSE_KERNEL_MINOR_VERSION),
        max_readahead: theirs.max_readahead.min(MAX_DATA as u32),
        flags: theirs.flags & (abi::FUSE_BIG_WRITES | abi::FUSE_MAX_PAGES),
        max_write: MAX_DATA as u32,
        time_gran: 1,
        max_pages: (MAX_DATA / 4096) as u16,
        ..Default::default()
    })
}

/// Returns the answer to `OPEN`, which tells the kernel not to send `FLUSH` when a descriptor of
/// the file is closed. When a test replaces the daemon, the process that starts the new daemon
/// closes such descriptors. At that time, no daemon could answer a `FLUSH`.
fn opened() -> abi::fuse_open_out {
    abi::fuse_open_out {
        open_flags: abi::FOPEN_NOFLUSH,
        ..Default::default()
    }
}

fn attributes(file: &File) -> io::Result<abi::fuse_attr> {
    let found = file.metadata()?;
    Ok(abi::fuse_attr {
        ino: found.ino(),
        size: found.size(),
        blocks: found.blocks(),
        atime: found.atime() as u64,
        mtime: found.mtime() as u64,
        ctime: found.ctime() as u64,
        atimensec: found.atime_nsec() as u32,
        mtimensec: found.mtime_nsec() as u32,
        ctimensec: found.ctime_nsec() as u32,
        mode: found.mode(),
        nlink: found.nlink() as u32,
        uid: found.uid(),
        gid: found.gid(),
        rdev: 0,
        blksize: found.blksize() as u32,
        flags: 0,
    })
}

fn invalid<T>() -> io::Result<T> {
    Err(Errno::INVAL.into())
}

fn bytes(value: &(impl IntoBytes + Immutable)) -> Reply {
    Ok(value.as_bytes().to_vec())
}

/// Parses the arguments at the start of a request's body. Returns the arguments and the rest of the
/// body.
fn arguments<T: FromBytes>(body: &[u8]) -> io::Result<(T, &[u8])> {
    T::read_from_prefix(body).or_else(|_| invalid())
}

/// Parses the arguments of a request. The request's body must contain nothing else.
fn exactly<T: FromBytes>(body: &[u8]) -> io::Result<T> {
    T::read_from_bytes(body).or_else(|_| invalid())
}

/// Parses a body that consists of a file name and a terminating zero byte.
fn name(bytes: &[u8]) -> io::Result<&OsStr> {
    match bytes {
        [b'.', 0] | [b'.', b'.', 0] => invalid(),
        [name @ .., 0]
            if (1..=MAX_NAME).contains(&name.len())
                && !name.iter().any(|byte| matches!(byte, 0 | b'/')) =>
        {
            Ok(OsStr::from_bytes(name))
        }
        _ => invalid(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::assert::random::Random;
    use crate::lab::run::scratch::Scratch;

    const HEADER: usize = size_of::<abi::fuse_in_header>();
    const PLENTY: usize = 1 << 20;

    fn request(opcode: u32, nodeid: u64, body: &[&[u8]]) -> Vec<u8> {
        let body = body.concat();
        let header = abi::fuse_in_header {
            len: (HEADER + body.len()) as u32,
            opcode,
            unique: 77,
            nodeid,
            ..Default::default()
        };
        [header.as_bytes(), &body].concat()
    }

    /// Parses a well-formed answer. Returns the error and the data after the header.
    fn parse(answer: &[u8]) -> (i32, &[u8]) {
        let (header, data) = abi::fuse_out_header::read_from_prefix(answer).unwrap();
        assert_eq!((header.len as usize, header.unique), (answer.len(), 77));
        assert!(header.error == 0 || data.is_empty());
        (-header.error, data)
    }

    #[track_caller]
    fn fails(directory: &mut Directory, request: &[u8], errno: Errno) {
        let answer = directory.answer(request, PLENTY);
        assert_eq!(parse(&answer).0, errno.raw_os_error());
    }

    /// Creates a directory with a file `f` that contains "hello". Returns the directory, a server
    /// of the directory, and the file's node.
    fn directory() -> (Scratch, Directory, u64) {
        let scratch = Scratch::new();
        let path = scratch.path("f");
        std::fs::write(&path, "hello").unwrap();
        let node = path.metadata().unwrap().ino();
        let directory = Directory::new(&scratch.path(""));
        (scratch, directory, node)
    }

    fn read_in(offset: u64, size: u32) -> abi::fuse_read_in {
        abi::fuse_read_in {
            offset,
            size,
            ..Default::default()
        }
    }

    fn write_in(offset: u64, size: u32) -> abi::fuse_write_in {
        abi::fuse_write_in {
            offset,
            size,
            ..Default::default()
        }
    }

    #[test]
    fn a_file_is_found_read_and_written() {
        let (scratch, mut directory, node) = directory();
        let answer = directory.answer(&request(op::LOOKUP, 1, &[b"f\0"]), PLENTY);
        let entry = abi::fuse_entry_out::read_from_bytes(parse(&answer).1).unwrap();
        assert_eq!((entry.nodeid, entry.attr.size), (node, 5));
        let write = write_in(4, 3);
        let answer = directory.answer(
            &request(op::WRITE, node, &[write.as_bytes(), b"p me"[..3].as_ref()]),
            PLENTY,
        );
        assert_eq!(parse(&answer).0, 0);
        assert_eq!(std::fs::read(scratch.path("f")).unwrap(), b"hellp m");
        // A new server also finds the node, which only the previous server has reported.
        let mut directory = Directory::new(&scratch.path(""));
        let read = read_in(1, 100);
        let answer = directory.answer(&request(op::READ, node, &[read.as_bytes()]), PLENTY);
        assert_eq!(parse(&answer), (0, &b"ellp m"[..]));
    }

    #[test]
    fn a_list_goes_on_where_it_stopped() {
        let (scratch, mut directory, _) = directory();
        std::fs::write(scratch.path("other"), "").unwrap();
        std::fs::create_dir(scratch.path("no-file")).unwrap();
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            // The answer has room for one name.
            let read = read_in(offset, 32);
            let answer = directory.answer(&request(op::READDIR, 1, &[read.as_bytes()]), PLENTY);
            let (error, data) = parse(&answer);
            assert_eq!(error, 0);
            let Ok((entry, name)) = abi::fuse_dirent::read_from_prefix(data) else {
                break;
            };
            names.push(name[..entry.namelen as usize].to_vec());
            offset = entry.off;
        }
        names.sort();
        assert_eq!(names, [&b"f"[..], b"other"]);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let (_scratch, mut directory, node) = directory();
        let read = read_in(0, 5);
        let whole = request(op::READ, node, &[read.as_bytes()]);
        for len in 0..HEADER {
            assert_eq!(directory.answer(&whole[..len], PLENTY), b"");
        }
        for len in HEADER..whole.len() {
            fails(&mut directory, &whole[..len], Errno::INVAL);
        }
        fails(&mut directory, &[&whole[..], b"x"].concat(), Errno::INVAL);
        let longer = request(op::READ, node, &[read.as_bytes(), b"x"]);
        fails(&mut directory, &longer, Errno::INVAL);
        let shorter = request(op::READ, node, &[&read.as_bytes()[1..]]);
        fails(&mut directory, &shorter, Errno::INVAL);
        for size in [0, 2, u32::MAX] {
            let write = write_in(0, size);
            let write = request(op::WRITE, node, &[write.as_bytes(), b"x"]);
            fails(&mut directory, &write, Errno::INVAL);
        }
        // There is room for the answer's header and for four bytes, but the request asks for five.
        assert_eq!(
            parse(&directory.answer(&whole, 20)).0,
            Errno::INVAL.raw_os_error()
        );
        assert_eq!(directory.answer(&whole, 15), b"");
        for size in [MAX_DATA as u32 + 1, u32::MAX] {
            let read = request(op::READ, node, &[read_in(0, size).as_bytes()]);
            fails(&mut directory, &read, Errno::INVAL);
        }
    }

    #[test]
    fn wrong_names_and_nodes_are_errors() {
        let (_scratch, mut directory, node) = directory();
        let long = [b'x'; 256];
        for name in [
            &b""[..],
            b"\0",
            b"f",
            b".\0",
            b"..\0",
            b"../f\0",
            b"f\0\0",
            &[&long[..], b"\0"].concat(),
        ] {
            fails(
                &mut directory,
                &request(op::LOOKUP, 1, &[name]),
                Errno::INVAL,
            );
            let create = abi::fuse_create_in::default();
            let create = request(op::CREATE, 1, &[create.as_bytes(), name]);
            fails(&mut directory, &create, Errno::INVAL);
        }
        fails(
            &mut directory,
            &request(op::LOOKUP, 1, &[b"g\0"]),
            Errno::NOENT,
        );
        let inside = request(op::LOOKUP, node, &[b"f\0"]);
        fails(&mut directory, &inside, Errno::NOTDIR);
        for node in [0, u64::MAX] {
            fails(&mut directory, &request(op::OPEN, node, &[]), Errno::STALE);
        }
        for offset in [i64::MAX as u64 + 1, u64::MAX] {
            let write = write_in(offset, 1);
            let write = request(op::WRITE, node, &[write.as_bytes(), b"x"]);
            fails(&mut directory, &write, Errno::INVAL);
        }
    }

    #[test]
    fn what_is_not_known_is_enosys() {
        let (_scratch, mut directory, node) = directory();
        let unlink = fuse_opcode::FUSE_UNLINK as u32;
        for opcode in [0, unlink, 1000, u32::MAX] {
            fails(&mut directory, &request(opcode, node, &[]), Errno::NOSYS);
        }
    }

    #[test]
    fn anything_at_all_is_answered_within_its_room() {
        let (_scratch, mut directory, node) = directory();
        let mut random = Random::new(5);
        for _ in 0..20_000 {
            let mut body = vec![0; random.below(120) as usize];
            // A body of zeroes passes more checks than a random body.
            if random.below(2) == 0 {
                random.fill(&mut body);
            }
            let nodes = [0, 1, node, u64::MAX];
            let to = nodes[random.below(4) as usize];
            let mut request = request(random.below(54) as u32, to, &[&body]);
            if random.below(4) == 0 {
                request.truncate(random.below(request.len() as u64 + 1) as usize);
            }
            let room = random.below(200) as usize;
            let answer = directory.answer(&request, room);
            assert!(answer.len() <= room);
            if !answer.is_empty() {
                parse(&answer);
            }
        }
    }
}
