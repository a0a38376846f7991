// SPDX-License-Identifier: GPL-2.0
/*
 * Functions that make static inlines and macros of the kernel callable from Rust.
 *
 * The symbols have a prefix of their own, so that they differ from those of the kernel crate's
 * helpers. The names in Rust have no prefix. A helper that the kernel crate has as well must not be
 * added here, because bindings/raw.rs imports the helpers of both, and the name would be ambiguous.
 */
#include <linux/capability.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/cred.h>
#include <linux/eventfd.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/instrumented.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/nospec.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>
#include <linux/suspend.h>
#include <linux/swait.h>
#include <linux/workqueue.h>

bool vduse_rs_helper_eventfd_signal_allowed(void)
{
	return eventfd_signal_allowed();
}

unsigned long vduse_rs_helper_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

void vduse_rs_helper_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

bool vduse_rs_helper_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags)
{
	return spin_trylock_irqsave(lock, *flags);
}

void vduse_rs_helper_current_fsuid_fsgid(kuid_t *uid, kgid_t *gid)
{
	current_fsuid_fsgid(uid, gid);
}

unsigned long vduse_rs_helper_array_index_nospec(unsigned long index, unsigned long size)
{
	return array_index_nospec(index, size);
}

phys_addr_t vduse_rs_helper_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

phys_addr_t vduse_rs_helper_virt_to_phys(void *address)
{
	return virt_to_phys(address);
}

void *vduse_rs_helper_alloc_pages_exact(size_t size, gfp_t gfp)
{
	return alloc_pages_exact(size, gfp);
}

struct workqueue_struct *vduse_rs_helper_alloc_workqueue(const char *name, unsigned int flags)
{
	return alloc_workqueue("%s", flags, 0, name);
}

struct page *vduse_rs_helper_phys_to_page(phys_addr_t phys)
{
	return pfn_to_page(PFN_DOWN(phys));
}

void vduse_rs_helper_get_page(struct page *page)
{
	get_page(page);
}

void vduse_rs_helper_put_page(struct page *page)
{
	put_page(page);
}

bool vduse_rs_helper_is_killed(void)
{
	return fatal_signal_pending(current);
}

unsigned long vduse_rs_helper_rlimit(unsigned int limit)
{
	return rlimit(limit);
}

void vduse_rs_helper_spin_lock_bh(spinlock_t *lock)
{
	spin_lock_bh(lock);
}

void vduse_rs_helper_spin_unlock_bh(spinlock_t *lock)
{
	spin_unlock_bh(lock);
}

bool vduse_rs_helper_spin_trylock_bh(spinlock_t *lock)
{
	return spin_trylock_bh(lock);
}

/* Sets up an address space that is not part of an inode, as inode_init_always() does for an inode's. */
void vduse_rs_helper_address_space_init(struct address_space *space)
{
	address_space_init_once(space);
	space->a_ops = &empty_aops;
	mapping_set_gfp_mask(space, GFP_HIGHUSER_MOVABLE);
	init_rwsem(&space->invalidate_lock);
}

void vduse_rs_helper_init_deferrable_work(struct delayed_work *work, work_func_t function)
{
	INIT_DEFERRABLE_WORK(work, function);
}

bool vduse_rs_helper_get_page_unless_zero(struct page *page)
{
	return get_page_unless_zero(page);
}

bool vduse_rs_helper_page_ref_freeze(struct page *page, int count)
{
	return page_ref_freeze(page, count);
}

void vduse_rs_helper_page_ref_unfreeze(struct page *page, int count)
{
	page_ref_unfreeze(page, count);
}

#ifdef VDUSE_RS_FAST_X86_64
/*
 * Does what memcpy() does, but copies a whole page with copy_page(). On a CPU without FSRM, memcpy()
 * is a loop. There, copy_page() is `rep movsq` or, on very old CPUs, a shorter loop. KASAN and
 * similar tools do not see the accesses of copy_page(), so this function reports the accesses.
 * Two pages overlap only if they are the same page.
 */
static __always_inline void memcpy_or_copy_page(void *to, void *from, size_t len)
{
	if (len == PAGE_SIZE && PAGE_ALIGNED(to) && PAGE_ALIGNED(from)) {
		instrument_memcpy_before(to, from, len);
		copy_page(to, from);
		instrument_memcpy_after(to, from, len, 0);
	} else {
		memcpy(to, from, len);
	}
}
#endif

/*
 * Copies @len bytes between two ranges of physical memory that have page structures. Each range may
 * span several pages.
 */
void vduse_rs_helper_memcpy_phys(phys_addr_t to, phys_addr_t from, size_t len)
{
#ifdef VDUSE_RS_FAST_X86_64
	/* One copy suffices, as all memory is mapped linearly and no cache needs flushing. */
	memcpy_or_copy_page(phys_to_virt(to), phys_to_virt(from), len);
#else
	while (len) {
		struct page *page = pfn_to_page(PHYS_PFN(to));
		char *addr = kmap_local_page(page);
		size_t part = min3(len, PAGE_SIZE - offset_in_page(to),
				   PAGE_SIZE - offset_in_page(from));

		memcpy_from_page(addr + offset_in_page(to), pfn_to_page(PHYS_PFN(from)),
				 offset_in_page(from), part);
		flush_dcache_page(page);
		kunmap_local(addr);

		to += part;
		from += part;
		len -= part;
	}
#endif
}

/*
 * Copies @len bytes from physical memory that has page structures. The range may span several pages.
 */
void vduse_rs_helper_memcpy_from_phys(void *to, phys_addr_t from, size_t len)
{
	while (len) {
		size_t part = min(len, PAGE_SIZE - offset_in_page(from));

		memcpy_from_page(to, pfn_to_page(PHYS_PFN(from)), offset_in_page(from), part);
		to += part;
		from += part;
		len -= part;
	}
}

/*
 * Copies @len bytes to physical memory that has page structures. The range may span several pages.
 */
void vduse_rs_helper_memcpy_to_phys(phys_addr_t to, const void *from, size_t len)
{
	while (len) {
		size_t part = min(len, PAGE_SIZE - offset_in_page(to));

		memcpy_to_page(pfn_to_page(PHYS_PFN(to)), offset_in_page(to), from, part);
		to += part;
		from += part;
		len -= part;
	}
}

u16 vduse_rs_helper_load_acquire_phys(phys_addr_t phys)
{
	void *page = kmap_local_page(pfn_to_page(PHYS_PFN(phys)));
	u16 value = smp_load_acquire((u16 *)(page + offset_in_page(phys)));

	kunmap_local(page);
	return value;
}

void vduse_rs_helper_store_release_phys(phys_addr_t phys, u16 value)
{
	struct page *page = pfn_to_page(PHYS_PFN(phys));
	void *addr = kmap_local_page(page);

	smp_store_release((u16 *)(addr + offset_in_page(phys)), value);
	flush_dcache_page(page);
	kunmap_local(addr);
}

bool vduse_rs_helper_PageHWPoison(const struct page *page)
{
	return PageHWPoison(page);
}

void vduse_rs_helper_cond_resched(void)
{
	cond_resched();
}

/*
 * Does what wait_for_completion_killable_timeout() does, but in a freezable task state, and only with
 * a finite timeout. The kernel has no freezable wait for a completion with a timeout.
 */
long vduse_rs_helper_wait_for_completion_killable_freezable_timeout(struct completion *x,
								     unsigned long timeout)
{
	long ret = timeout;

	might_sleep();
	if (try_wait_for_completion(x))
		return ret ?: 1;

	return ___swait_event(x->wait, ___wait_cond_timeout(try_wait_for_completion(x)),
			      (TASK_KILLABLE | TASK_FREEZABLE_UNSAFE), ret,
			      __ret = schedule_timeout(__ret));
}

int vduse_rs_helper_add_pm_notifier(struct notifier_block *notifier)
{
	return register_pm_notifier(notifier);
}

int vduse_rs_helper_remove_pm_notifier(struct notifier_block *notifier)
{
	return unregister_pm_notifier(notifier);
}

bool vduse_rs_helper_is_shutting_down(void)
{
	enum system_states state = READ_ONCE(system_state);

	return state == SYSTEM_HALT || state == SYSTEM_POWER_OFF || state == SYSTEM_RESTART;
}
