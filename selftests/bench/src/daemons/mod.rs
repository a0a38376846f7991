// SPDX-License-Identifier: GPL-2.0

//! Measurements of disk daemons. Each serves the same image, on the same file system, in the same
//! boot, and gets the same work.
//!
//! - `contender` has the daemons, and how each is started.
//! - `image` has the file system with the image.
//! - `work` has the rows.

mod contender;
mod image;
mod work;

use std::collections::HashMap;
use std::path::Path;

use vduse_selftests::differences::Driver;
use vduse_selftests::lab::device::bus;

use crate::daemons::contender::{Contender, Media};
use crate::daemons::image::ImageDirectory;
use crate::daemons::work::Work;
use crate::drivers;
use crate::options::Options;
use crate::profile;
use crate::table::{aligned, figure, median, ratio};

/// The figures of each row and contender, in the order of the rounds.
type Figures = HashMap<(String, Contender), Vec<f64>>;

/// Measures all daemons. Returns the table. `rublk` is the path of rublk.
pub fn measure(options: &Options, rublk: &Path) -> Result<String, String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let works: Vec<Work> = work::all(cpus)
        .into_iter()
        .filter(|work| options.wants(&work.name()))
        .collect();
    drivers::load_bus()?;
    bus::set_autoprobe(false)?;
    let directory = ImageDirectory::new();
    let mut figures = Figures::new();
    for _ in 0..options.rounds {
        for driver in [Some(Driver::C), Some(Driver::Rust), None] {
            if let Some(driver) = driver {
                drivers::load(driver, &options.module)?;
            }
            let its_own = |contender: &Contender| contender.driver() == driver;
            for contender in Contender::ALL.into_iter().filter(its_own) {
                profile::next();
                for media in [Media::File, Media::Null] {
                    run(contender, media, &works, &directory, rublk, &mut figures);
                }
                profile::tell(contender.title());
            }
            if let Some(driver) = driver {
                drivers::unload(driver)?;
            }
        }
    }
    Ok(table(&works, &figures))
}

/// Measures the rows of one kind of disk with one daemon.
fn run(
    contender: Contender,
    media: Media,
    works: &[Work],
    directory: &ImageDirectory,
    rublk: &Path,
    figures: &mut Figures,
) {
    let mut works = works.iter().filter(|work| work.media == media).peekable();
    if works.peek().is_none() || !contender.has(media) {
        return;
    }
    contender.serve(media, directory, rublk, &mut |block| {
        for work in works.by_ref() {
            let key = (work.name(), contender);
            figures.entry(key).or_default().push(work.measure(block));
        }
    });
}

/// Formats the table.
fn table(works: &[Work], figures: &Figures) -> String {
    let contenders = Contender::ALL.map(Contender::title);
    let ratios = ["/(qsd, C)", "wanted", "", "/rublk", "wanted", ""];
    let title = [&["what", "unit"][..], &contenders, &ratios].concat();
    let mut lines = vec![title.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for work in works {
        let of = |contender| median(figures.get(&(work.name(), contender))?.clone());
        let to = |other| Some(of(Contender::VduseBlk)? / of(other)?);
        let mut cells = vec![work.name(), work.unit().to_owned()];
        cells.extend(Contender::ALL.map(|contender| figure(of(contender))));
        for (other, target) in [
            (Contender::Qsd(Driver::C), work.to_qsd),
            (Contender::Rublk, work.to_rublk),
        ] {
            let found = to(other);
            // Rounded as it is shown.
            let reached = |ratio: f64| (ratio * 100.0).round() / 100.0 >= target;
            let missed = found.is_some_and(|ratio| !reached(ratio));
            cells.extend([
                ratio(found),
                format!(">= {target:.2}"),
                if missed { "missed" } else { "" }.to_owned(),
            ]);
        }
        lines.push(cells);
    }
    aligned(&lines, |column| matches!(column, 0 | 1 | 10 | 13))
}
