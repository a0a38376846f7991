// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The life of a disk: it is created or taken over, served, resized, and destroyed.

use std::io;
use std::sync::Arc;

use rustix::process::{setrlimit, Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vduse::blk::{self, Geometry};
use vduse::memory::prepare_for_shortage;
use vduse::server::{Handle, Threads};
use vduse::virtqueue::InFlightLog;
use vduse::{Control, Device};

use crate::flight::MAX_DISCARD;
use crate::image::Image;
use crate::options::{default_queues, Options};
use crate::worker::{Worker, SEGMENTS};

/// The length of a request in bytes from which on the disk is fastest.
const OPTIMAL: u32 = 1 << 16;

/// The virtio device id of a disk, as sysfs shows it.
const DISK: &str = "2";

/// No limit of a resource.
const UNLIMITED: Rlimit = Rlimit {
    current: None,
    maximum: None,
};

/// Returns an error with a prefix that says what failed.
fn context(what: &str) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Serves a disk until a signal ends the program.
pub fn serve(options: &Options) -> io::Result<()> {
    prepare(options)?;
    let path = options.file.display().to_string();
    let image = Image::open(&options.file, options.read_only, options.buffered);
    let image = Arc::new(image.map_err(context(&path))?);
    // Signals are caught from now on, so that none ends the program half-way.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;

    let control = Control::open().map_err(context("/dev/vduse/control"))?;
    let (device, queues) = open(&control, options, &image)?;
    let path = options.log.display().to_string();
    let log = InFlightLog::open(&options.log, queues).map_err(context(&path))?;
    if log.is_new() && is_in_use(&device, queues)? {
        let _ = std::fs::remove_file(&options.log);
        let message = "has no log of the daemon that has served the disk; --log names it";
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path}: {message}"),
        ));
    }
    let worker = |_| Worker::new(image.clone(), &options.serial);
    let workers = (0..queues).map(worker).collect();
    let mut server = Threads::new(device, options.queue_size, workers, Some(log))?;
    if options.pinned {
        // If this is not allowed, the limit may be high enough all the same.
        let _ = setrlimit(Resource::Memlock, UNLIMITED);
        server.use_umem();
    }

    let handle = server.handle();
    let closer = signals.handle();
    let listener = {
        let image = image.clone();
        std::thread::spawn(move || listen(&mut signals, &handle, &image))
    };
    // The program that has started this one may not want to know.
    let _ = sd_notify::notify(true, &[sd_notify::NotifyState::Ready]);
    let served = server.run();
    closer.close();
    // The thread has no reason to panic.
    let _ = listener.join();
    drop(server);
    served?;

    match control.destroy(&options.name) {
        Ok(()) => std::fs::remove_file(&options.log),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            eprintln!("{}: on the vDPA bus: stays for a successor", options.name);
            Ok(())
        }
        Err(error) => Err(context("destroying the device")(error)),
    }
}

/// Makes the program fit to serve a disk while memory is short. Must be called before the program has
/// other threads.
fn prepare(options: &Options) -> io::Result<()> {
    match prepare_for_shortage() {
        Err(error) if options.for_swap => Err(error.into()),
        Err(error) => {
            let name = &options.name;
            eprintln!("vduse-blk: {name}: do not swap to this disk: {error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Creates and opens the device, or opens the one that an earlier program has created. Returns the
/// device and its number of virtqueues.
fn open(control: &Control, options: &Options, image: &Image) -> io::Result<(Device, u16)> {
    // The in-tree driver of Linux 7.2 has no features to offer.
    control.offer_all()?;
    // Each descriptor of an indirect table can have data, except for the header's and the status's.
    let mut max_segments = u32::from(options.queue_size).max(3) - 2;
    if options.for_swap {
        // Whatever the driver, there is memory for the request.
        max_segments = max_segments.min(SEGMENTS as u32);
    }
    let geometry = Geometry {
        bytes: image.size(),
        queues: options.queues.unwrap_or_else(default_queues),
        max_segments,
        block: image.block(),
        optimal: OPTIMAL,
        max_discard: if image.discards() { MAX_DISCARD } else { 0 },
        read_only: image.is_read_only(),
    };
    match control.create(&geometry.device_config(&options.name)) {
        Ok(()) => {
            let device = Device::open_nonblocking(&options.name)?;
            Ok((device, geometry.queues))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let device = Device::open_nonblocking(&options.name).map_err(context("taking over"))?;
            let is_there = |&index: &u32| device.vq_info(index).is_ok();
            let queues = (0..u32::from(u16::MAX)).take_while(is_there).count() as u16;
            if options.queues.is_some_and(|wanted| wanted != queues) {
                let message = format!("the device exists and has {queues} virtqueues");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            check(options, &device, queues)?;
            // The image may have grown meanwhile.
            blk::resize(&device, image.size()).map_err(context("the device's capacity"))?;
            Ok((device, queues))
        }
        Err(error) => Err(context("creating the device")(error)),
    }
}

/// Checks that the device that exists can be served.
fn check(options: &Options, device: &Device, queues: u16) -> io::Result<()> {
    let invalid = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    // The in-tree driver does not show what a device is.
    let attribute = format!("/sys/class/vduse/{}/device_id", options.name);
    if std::fs::read_to_string(attribute).is_ok_and(|id| id.trim() != DISK) {
        return invalid("the device exists and is no disk".to_owned());
    }
    for index in 0..queues {
        let info = device.vq_info(index.into())?;
        if info.ready != 0 && info.num > options.queue_size.into() {
            let size = info.num;
            return invalid(format!(
                "the device is in use with virtqueues of {size} entries"
            ));
        }
    }
    Ok(())
}

/// Returns whether a driver uses a virtqueue of the device.
fn is_in_use(device: &Device, queues: u16) -> io::Result<bool> {
    for index in 0..queues {
        if device.vq_info(index.into())?.ready != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Handles signals until one ends the server, or until the server has ended.
fn listen(signals: &mut Signals, handle: &Handle, image: &Image) {
    for signal in signals.forever() {
        if signal != SIGHUP {
            handle.stop();
            return;
        }
        let resized = image
            .refresh()
            .and_then(|bytes| blk::resize(handle.device(), bytes));
        if let Err(error) = resized {
            eprintln!("{}: resizing: {error}", handle.device().name());
        }
    }
}
