// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The options on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::*;

/// The text that `--help` prints.
pub const HELP: &str = "\
usage: vduse-blk [OPTION]... --name NAME FILE

Serves FILE, a raw image or a block device, as the VDUSE disk NAME. Then
`vdpa dev add name NAME mgmtdev vduse` puts the disk on the vDPA bus, where
the kernel's virtio_blk or a virtual machine uses it.

  -n, --name NAME       name of the device, in /dev/vduse
  -q, --queues N        number of virtqueues, each with a thread (default: one
                        for each CPU, at most 8)
      --queue-size N    entries of a virtqueue: a power of 2 from 2 to 1024
                        (default 256)
      --serial TEXT     the disk's serial number, of which 20 bytes are used
                        (default: NAME)
  -r, --read-only       reject writes
      --buffered        use the page cache; without this option, data goes
                        straight between FILE and the driver's buffers
      --pinned          lock memory for the whole bounce area (64 MiB, unless
                        bounce_size in sysfs has another size) and register it
                        with io_uring: the fastest way
      --for-swap        end with an error unless the disk can be relied upon
                        while memory is short (see below); limits requests
                        to 64 segments
      --log FILE        where the requests in flight are recorded, for a
                        successor (default: /run/vduse-blk-NAME.log)
  -h, --help            print this text
  -V, --version         print the version

If the device exists, because an earlier vduse-blk has died or was stopped
while a driver used the disk, this one takes the disk over, and repeats the
requests that the other has not completed.

The kernel writes to a disk when memory is short, above all to swap space. So
the program locks its memory, is an I/O flusher, and is spared by the OOM
killer. This needs CAP_SYS_RESOURCE, and CAP_IPC_LOCK or no limit of locked
memory. Without these, the program says so and serves the disk all the same,
unless --for-swap is given: do not swap to such a disk, or the machine may
hang. --buffered takes memory for each write, so leave that out, too.

SIGHUP: tells the driver the size that FILE has now.
SIGTERM, SIGINT: ends the program, when the requests in progress are complete.
The device is destroyed unless it is on the vDPA bus.
";

/// Maximum number of entries of a virtqueue. A request has up to this many segments, and Linux has
/// no longer vectors (`UIO_MAXIOV`).
const MAX_QUEUE_SIZE: u16 = 1024;

/// Maximum number of virtqueues that are made without being asked for.
const DEFAULT_QUEUES: usize = 8;

/// What the program shall do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve a disk.
    Serve(Options),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// The options of a disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the device.
    pub name: String,
    /// The image or block device.
    pub file: PathBuf,
    /// Number of virtqueues. `None` selects the number of a device that exists already, or the
    /// default.
    pub queues: Option<u16>,
    /// Number of entries of a virtqueue.
    pub queue_size: u16,
    /// The serial number.
    pub serial: String,
    /// Whether the disk rejects writes.
    pub read_only: bool,
    /// Whether the page cache is used.
    pub buffered: bool,
    /// Whether the bounce area is in locked memory of this program.
    pub pinned: bool,
    /// Whether the disk must be one that the kernel can write to while memory is short.
    pub for_swap: bool,
    /// Path of the log of requests in flight.
    pub log: PathBuf,
}

/// Returns the number of virtqueues of a new device, if it was not given.
pub fn default_queues() -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // CAST: At most `DEFAULT_QUEUES`.
    cpus.min(DEFAULT_QUEUES) as u16
}

/// Parses the command line, without the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Action, lexopt::Error> {
    let (mut name, mut file, mut queues, mut serial, mut log) = (None, None, None, None, None);
    let (mut queue_size, mut read_only, mut buffered, mut pinned) = (256, false, false, false);
    let mut for_swap = false;
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('n') | Long("name") => name = Some(parser.value()?.string()?),
            Short('q') | Long("queues") => {
                let count = parser.value()?.parse_with(|text| match text.parse() {
                    Ok(count @ 1..=u16::MAX) => Ok(count),
                    _ => Err("a number from 1 to 65535"),
                })?;
                queues = Some(count);
            }
            Long("queue-size") => {
                queue_size = parser.value()?.parse_with(|text| match text.parse() {
                    Ok(size @ 2..=MAX_QUEUE_SIZE) if u16::is_power_of_two(size) => Ok(size),
                    _ => Err("a power of 2 from 2 to 1024"),
                })?;
            }
            Long("serial") => serial = Some(parser.value()?.string()?),
            Short('r') | Long("read-only") => read_only = true,
            Long("buffered") => buffered = true,
            Long("pinned") => pinned = true,
            Long("for-swap") => for_swap = true,
            Long("log") => log = Some(parser.value()?.into()),
            Short('h') | Long("help") => return Ok(Action::Help),
            Short('V') | Long("version") => return Ok(Action::Version),
            Value(value) if file.is_none() => file = Some(value.into()),
            _ => return Err(argument.unexpected()),
        }
    }
    let name = name.ok_or("the option --name is missing")?;
    if name.is_empty() || name.contains('/') {
        return Err("a device's name is not empty and has no /".into());
    }
    Ok(Action::Serve(Options {
        file: file.ok_or("FILE is missing")?,
        queues,
        queue_size,
        serial: serial.unwrap_or_else(|| name.clone()),
        read_only,
        buffered,
        pinned,
        for_swap,
        log: log.unwrap_or_else(|| format!("/run/vduse-blk-{name}.log").into()),
        name,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Action, lexopt::Error> {
        super::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn defaults_depend_on_the_name() {
        let Ok(Action::Serve(options)) = parse("--name disk0 /image") else {
            panic!("a disk");
        };
        let expected = Options {
            name: "disk0".into(),
            file: "/image".into(),
            queues: None,
            queue_size: 256,
            serial: "disk0".into(),
            read_only: false,
            buffered: false,
            pinned: false,
            for_swap: false,
            log: "/run/vduse-blk-disk0.log".into(),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn all_options_are_taken() {
        let line =
            "/i -nd -q4 --queue-size=1024 --serial s -r --buffered --pinned --for-swap --log /l";
        let Ok(Action::Serve(options)) = parse(line) else {
            panic!("a disk");
        };
        assert_eq!((options.queues, options.queue_size), (Some(4), 1024));
        assert_eq!(
            (options.serial.as_str(), options.log.to_str()),
            ("s", Some("/l"))
        );
        assert!(options.read_only && options.buffered && options.pinned && options.for_swap);
        assert_eq!(parse("--help").unwrap(), Action::Help);
        assert_eq!(parse("-V").unwrap(), Action::Version);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "",
            "/i",
            "-n d",
            "-n d /i /j",
            "-n a/b /i",
            "-n d /i --queues 0",
            "-n d /i --queues 65536",
            "-n d /i --queue-size 3",
            "-n d /i --queue-size 2048",
            "-n d /i --direct",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
