// SPDX-License-Identifier: GPL-2.0

//! Safe Rust bindings for the kernel facilities that the `kernel` crate lacks, one file each.
//!
//! The bindings are independent of VDUSE. All `unsafe` code of the module is in this directory.

mod raw;

pub(crate) mod address_space;
pub(crate) mod anon_inode;
pub(crate) mod atomic_cpumask;
pub(crate) mod bounce;
pub(crate) mod capability;
pub(crate) mod chrdev;
pub(crate) mod class;
pub(crate) mod completion;
pub(crate) mod cpumask;
pub(crate) mod cred;
pub(crate) mod device;
pub(crate) mod direct_map;
pub(crate) mod eventfd;
pub(crate) mod fast;
pub(crate) mod fd;
pub(crate) mod file_ops;
pub(crate) mod iova;
pub(crate) mod kobject;
pub(crate) mod lock;
pub(crate) mod module;
pub(crate) mod nospec;
pub(crate) mod once;
pub(crate) mod page;
pub(crate) mod param;
mod phys;
pub(crate) mod pin;
pub(crate) mod pm;
pub(crate) mod pod;
pub(crate) mod rcu;
mod rcu_box;
pub(crate) mod sched;
pub(crate) mod shrinker;
mod slots;
pub(crate) mod sysfs;
pub(crate) mod system;
pub(crate) mod ticker;
pub(crate) mod vdpa;
pub(crate) mod vhost_iotlb;
pub(crate) mod virtio_map;
pub(crate) mod vring;
pub(crate) mod workqueue;
