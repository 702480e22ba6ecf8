/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/maths.h"
#include "guest/fault.h"

/* ---- regions ---- */

static bool check_spec(const struct qv_guest_region_spec *spec, GError **error)
{
    uint64_t end;
    struct stat st;

    if (spec->size == 0 || !qv_add_u64(spec->gpa, spec->size, &end) ||
        !qv_add_u64(spec->user_addr, spec->size, &end) ||
        !qv_add_u64(spec->fd_offset, spec->size, &end)) {
        return qv_fail(error, QV_ERROR_FAILED,
                       "guest memory region at 0x%" PRIx64 ": bad size 0x%" PRIx64, spec->gpa,
                       spec->size);
    }
    if (fstat(spec->fd, &st) < 0) {
        return qv_fail_errno(error, errno, "guest memory region at 0x%" PRIx64, spec->gpa);
    }
    /* Beyond the end of the file every access would fault. */
    if (!S_ISREG(st.st_mode) || end > (uint64_t)st.st_size) {
        return qv_fail(error, QV_ERROR_FAILED,
                       "guest memory region at 0x%" PRIx64 ": its file is no regular file of at "
                       "least 0x%" PRIx64 " bytes",
                       spec->gpa, end);
    }
    return true;
}

/* Page size of mappings of @fd: mmap() of hugetlbfs wants offsets in huge pages. */
static size_t mapping_page(int fd)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct statfs fs;

    if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC && qv_is_pow2((uint64_t)fs.f_bsize) &&
        (size_t)fs.f_bsize > page) {
        page = (size_t)fs.f_bsize;
    }
    return page;
}

bool qv_guest_region_new(const struct qv_guest_region_spec *spec, struct qv_guest_region **out,
                         GError **error)
{
    struct qv_guest_region *region;
    size_t page, len;
    uint64_t start;
    void *base;

    if (!check_spec(spec, error)) {
        return false;
    }
    page = mapping_page(spec->fd);
    start = qv_align_down(spec->fd_offset, page);
    /* No overflow: offset + size is at most a file size, which off_t holds. */
    len = qv_align_up(spec->fd_offset - start + spec->size, page);
    base = mmap(NULL, len, spec->readonly ? PROT_READ : PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_NORESERVE, spec->fd, (off_t)start);
    if (base == MAP_FAILED) {
        return qv_fail_errno(error, errno, "guest memory region at 0x%" PRIx64, spec->gpa);
    }
    /* Keep guest memory out of core dumps: it is large, and the guest's secret. */
    (void)madvise(base, len, MADV_DONTDUMP);
    region = g_new0(struct qv_guest_region, 1);
    region->fault_handle = qv_fault_guard(base, len, page, &region->broken);
    if (region->fault_handle < 0) {
        munmap(base, len);
        g_free(region);
        return qv_fail(error, QV_ERROR_FAILED, "too many guest memory regions in this process");
    }
    region->gpa = spec->gpa;
    region->size = spec->size;
    region->user_addr = spec->user_addr;
    region->readonly = spec->readonly;
    region->host = (uint8_t *)base + (spec->fd_offset - start);
    region->map_base = base;
    region->map_len = len;
    atomic_init(&region->refs, 1);
    *out = region;
    return true;
}

static struct qv_guest_region *region_ref(struct qv_guest_region *region)
{
    atomic_fetch_add_explicit(&region->refs, 1, memory_order_relaxed);
    return region;
}

void qv_guest_region_unref(struct qv_guest_region *region)
{
    if (atomic_fetch_sub_explicit(&region->refs, 1, memory_order_acq_rel) == 1) {
        qv_fault_unguard(region->fault_handle);
        munmap(region->map_base, region->map_len);
        g_free(region);
    }
}

/* ---- maps ---- */

static int compare_gpa(const void *a, const void *b)
{
    const struct qv_guest_region *const *ra = a, *const *rb = b;

    return ((*ra)->gpa > (*rb)->gpa) - ((*ra)->gpa < (*rb)->gpa);
}

bool qv_guest_map_new(struct qv_guest_region *const *regions, unsigned count,
                      struct qv_guest_map **out, GError **error)
{
    struct qv_guest_map *map;

    if (count > QV_GUEST_REGIONS_MAX) {
        return qv_fail(error, QV_ERROR_FAILED, "%u guest memory regions, at most %u are possible",
                       count, QV_GUEST_REGIONS_MAX);
    }
    map = g_malloc0(sizeof(*map) + count * sizeof(map->regions[0]));
    atomic_init(&map->refs, 1);
    for (unsigned i = 0; i < count; i++) {
        map->regions[i] = region_ref(regions[i]);
    }
    map->count = count;
    if (count > 1) {
        qsort(map->regions, count, sizeof(map->regions[0]), compare_gpa);
    }
    for (unsigned i = 1; i < count; i++) {
        const struct qv_guest_region *below = map->regions[i - 1];

        if (below->gpa + below->size > map->regions[i]->gpa) {
            qv_fail(error, QV_ERROR_FAILED, "guest memory regions overlap at 0x%" PRIx64,
                    map->regions[i]->gpa);
            qv_guest_map_unref(map);
            return false;
        }
    }
    *out = map;
    return true;
}

bool qv_guest_map_with(const struct qv_guest_map *map, struct qv_guest_region *region,
                       struct qv_guest_map **out, GError **error)
{
    g_autofree struct qv_guest_region **all = g_new(struct qv_guest_region *, map->count + 1);

    memcpy(all, map->regions, map->count * sizeof(*all));
    all[map->count] = region;
    return qv_guest_map_new(all, map->count + 1, out, error);
}

bool qv_guest_map_without(const struct qv_guest_map *map, uint64_t gpa, uint64_t user_addr,
                          uint64_t size, struct qv_guest_map **out, GError **error)
{
    g_autofree struct qv_guest_region **rest = g_new(struct qv_guest_region *, map->count + 1);
    unsigned n = 0;

    for (unsigned i = 0; i < map->count; i++) {
        struct qv_guest_region *r = map->regions[i];

        if (r->gpa != gpa || r->user_addr != user_addr || r->size != size) {
            rest[n++] = r;
        }
    }
    if (n == map->count) {
        return qv_fail(error, QV_ERROR_NOT_FOUND, "no such guest memory region at 0x%" PRIx64, gpa);
    }
    return qv_guest_map_new(rest, n, out, error);
}

struct qv_guest_map *qv_guest_map_ref(struct qv_guest_map *map)
{
    atomic_fetch_add_explicit(&map->refs, 1, memory_order_relaxed);
    return map;
}

void qv_guest_map_unref(struct qv_guest_map *map)
{
    if (map == NULL || atomic_fetch_sub_explicit(&map->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (unsigned i = 0; i < map->count; i++) {
        qv_guest_region_unref(map->regions[i]);
    }
    g_free(map);
}

bool qv_guest_map_broken(const struct qv_guest_map *map)
{
    for (unsigned i = 0; i < map->count; i++) {
        if (atomic_load_explicit(&map->regions[i]->broken, memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

void *qv_guest_map_user_ptr(const struct qv_guest_map *map, uint64_t user_addr, uint64_t len)
{
    for (unsigned i = 0; i < map->count; i++) {
        const struct qv_guest_region *r = map->regions[i];

        if (user_addr >= r->user_addr && !r->readonly &&
            qv_range_inside(user_addr - r->user_addr, len, r->size)) {
            return r->host + (user_addr - r->user_addr);
        }
    }
    return NULL;
}

bool qv_guest_map_gpa_of(const struct qv_guest_map *map, const void *ptr, uint64_t *gpa)
{
    for (unsigned i = 0; i < map->count; i++) {
        const struct qv_guest_region *r = map->regions[i];
        uintptr_t delta = (uintptr_t)ptr - (uintptr_t)r->host;

        if ((uintptr_t)ptr >= (uintptr_t)r->host && delta < r->size) {
            *gpa = r->gpa + delta;
            return true;
        }
    }
    return false;
}

/* ---- views ---- */

struct qv_guest_view *qv_guest_view_new(struct qv_guest_map *map)
{
    struct qv_guest_view *view = g_new0(struct qv_guest_view, 1);

    view->map = qv_guest_map_ref(map);
    return view;
}

static void view_free(struct qv_guest_view *view)
{
    qv_guest_map_unref(view->map);
    g_free(view);
}

void qv_guest_view_retire(struct qv_guest_view *view)
{
    if (view == NULL) {
        return;
    }
    view->retired = true;
    if (view->users == 0) {
        view_free(view);
    }
}

void qv_guest_view_leave(struct qv_guest_view *view)
{
    view->users--;
    if (view->users == 0 && view->retired) {
        view_free(view);
    }
}

static bool region_holds(const struct qv_guest_region *r, uint64_t gpa)
{
    return gpa - r->gpa < r->size; /* wraps to a huge value when gpa lies below */
}

/* The region with @gpa in it, by bisection. */
static const struct qv_guest_region *find_region(struct qv_guest_view *view, uint64_t gpa)
{
    const struct qv_guest_map *map = view->map;
    unsigned low = 0, high = map->count;

    while (low < high) {
        unsigned mid = low + (high - low) / 2;

        if (region_holds(map->regions[mid], gpa)) {
            view->hint = mid;
            return map->regions[mid];
        }
        if (gpa < map->regions[mid]->gpa) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    return NULL;
}

static const struct qv_guest_region *region_of(struct qv_guest_view *view, uint64_t gpa)
{
    if (view->hint < view->map->count && region_holds(view->map->regions[view->hint], gpa)) {
        return view->map->regions[view->hint];
    }
    return find_region(view, gpa);
}

void *qv_guest_view_ptr(struct qv_guest_view *view, uint64_t gpa, uint64_t len, bool write)
{
    const struct qv_guest_region *r = region_of(view, gpa);

    if (r == NULL || len > r->size - (gpa - r->gpa) || (write && r->readonly)) {
        return NULL;
    }
    return r->host + (gpa - r->gpa);
}

int qv_guest_view_iov(struct qv_guest_view *view, uint64_t gpa, uint64_t len, bool write,
                      struct iovec *iov, unsigned max)
{
    unsigned n = 0;

    while (len > 0) {
        const struct qv_guest_region *r = region_of(view, gpa);
        uint64_t part;

        if (r == NULL || (write && r->readonly)) {
            return -EFAULT;
        }
        if (n == max) {
            return -E2BIG;
        }
        part = qv_min_u64(len, r->size - (gpa - r->gpa));
        iov[n].iov_base = r->host + (gpa - r->gpa);
        iov[n].iov_len = part;
        n++;
        len -= part;
        gpa += part; /* region ends never wrap, so neither does this while len > 0 */
    }
    return (int)n;
}

int qv_guest_view_read(struct qv_guest_view *view, uint64_t gpa, void *buf, uint64_t len)
{
    uint8_t *to = buf;

    while (len > 0) {
        const struct qv_guest_region *r = region_of(view, gpa);
        uint64_t part;

        if (r == NULL) {
            return -EFAULT;
        }
        part = qv_min_u64(len, r->size - (gpa - r->gpa));
        memcpy(to, r->host + (gpa - r->gpa), part);
        to += part;
        gpa += part;
        len -= part;
    }
    return 0;
}
