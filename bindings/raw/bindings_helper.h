/* SPDX-License-Identifier: GPL-2.0 */
/* The headers that bindgen reads: those of all kernel facilities that `bindings/` wraps. */
#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/cdev.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/iova.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/shrinker.h>
#include <linux/suspend.h>
#include <linux/sysfs.h>
#include <linux/vdpa.h>
#include <linux/vhost_iotlb.h>
#include <linux/virtio_config.h>
#include <linux/workqueue.h>
#include <uapi/linux/vdpa.h>
#include <uapi/linux/vhost_types.h>
#include <uapi/linux/virtio_blk.h>
#include <uapi/linux/virtio_ids.h>
#include <uapi/linux/virtio_net.h>
#include <uapi/linux/virtio_ring.h>

/* Constants for macros that bindgen cannot evaluate. */
/* For allocations that can fail without harm. */
const gfp_t RUST_CONST_HELPER_GFP_SPARES = GFP_ATOMIC | __GFP_NOMEMALLOC | __GFP_NOWARN;
const int RUST_CONST_HELPER_IOCB_NOWAIT = IOCB_NOWAIT;
const unsigned int RUST_CONST_HELPER_NOT_PREEMPTIBLE = PREEMPT_MASK | SOFTIRQ_MASK;
