/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as a device sees it.
 *
 * A region is one mapped piece of a file that the client shares with us. A map is an immutable set
 * of regions: to change guest memory, build a new map and hand it to each user of the old one. A
 * view is one user's hold on a map: requests count themselves in and out of it without atomics,
 * and the regions stay mapped until the last request has left. So memory may be added and removed
 * while requests are in flight.
 *
 * Trust: addresses come from the guest, region descriptions from the client; both are checked here
 * and nowhere else. The content may change at any time: copy what must not change.
 */
#ifndef QV_GUEST_MEMORY_H
#define QV_GUEST_MEMORY_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/* As many as Linux's own vhost allows. */
#define QV_GUEST_REGIONS_MAX 509u

/** Where a region comes from. */
struct qv_guest_region_spec {
    uint64_t gpa;       /* guest-physical address of the first byte */
    uint64_t size;      /* bytes, > 0 */
    uint64_t user_addr; /* the client's own address of the first byte; 0 where there is none */
    uint64_t fd_offset; /* byte offset of the first byte in @fd */
    int fd;             /* a regular file (memfd, tmpfs, hugetlbfs); stays the caller's */
    bool readonly;      /* devices may not write to it */
};

/** One mapped region. Read-only after creation; reference counted; any thread. */
struct qv_guest_region {
    uint64_t gpa, size, user_addr;
    uint8_t *host; /* first byte */
    bool readonly;
    atomic_bool broken; /* an access failed: the client took the memory away */
    /* private: */
    atomic_uint refs;
    void *map_base;
    size_t map_len;
    int fault_handle;
};

/**
 * qv_guest_region_new - maps @spec; the result has one reference.
 * Fails when the file is not a regular one, is shorter than the region needs, or addresses wrap
 * around. Any thread.
 */
bool qv_guest_region_new(const struct qv_guest_region_spec *spec, struct qv_guest_region **out,
                         GError **error);
void qv_guest_region_unref(struct qv_guest_region *region);

/** An immutable set of regions, sorted by guest address, without overlaps. */
struct qv_guest_map {
    atomic_uint refs;
    unsigned count;
    struct qv_guest_region *regions[];
};

/** qv_guest_map_new - takes a reference of its own on each region. Fails on overlaps and on more
 * than QV_GUEST_REGIONS_MAX. @count 0 is fine. Any thread. */
bool qv_guest_map_new(struct qv_guest_region *const *regions, unsigned count,
                      struct qv_guest_map **out, GError **error);

/** qv_guest_map_with / _without - a new map with one region more or less; @map is left alone. The
 * region to leave out is the one with exactly these values. */
bool qv_guest_map_with(const struct qv_guest_map *map, struct qv_guest_region *region,
                       struct qv_guest_map **out, GError **error);
bool qv_guest_map_without(const struct qv_guest_map *map, uint64_t gpa, uint64_t user_addr,
                          uint64_t size, struct qv_guest_map **out, GError **error);

struct qv_guest_map *qv_guest_map_ref(struct qv_guest_map *map);
/** qv_guest_map_unref - NULL is fine. */
void qv_guest_map_unref(struct qv_guest_map *map);

/** qv_guest_map_broken - whether the client took away memory of any region. */
bool qv_guest_map_broken(const struct qv_guest_map *map);

/** qv_guest_map_user_ptr - the host pointer of a client address whose @len bytes lie in one
 * writable region; NULL when they do not. */
void *qv_guest_map_user_ptr(const struct qv_guest_map *map, uint64_t user_addr, uint64_t len);

/** qv_guest_map_gpa_of - the guest address of a pointer that came from this map; false when it did
 * not. */
bool qv_guest_map_gpa_of(const struct qv_guest_map *map, const void *ptr, uint64_t *gpa);

/* ---- views: one user's hold on a map. All functions: the user's thread only. ---- */

struct qv_guest_view {
    struct qv_guest_map *map;
    unsigned hint;  /* index of the region of the last hit */
    unsigned users; /* requests that hold pointers into the map */
    bool retired;   /* the owner has let go of it: freed with the last request */
};

/** qv_guest_view_new - takes a reference on @map. */
struct qv_guest_view *qv_guest_view_new(struct qv_guest_map *map);

/** qv_guest_view_retire - the owner's hold ends; the view goes when its last request leaves. NULL
 * is fine. */
void qv_guest_view_retire(struct qv_guest_view *view);

static inline void qv_guest_view_enter(struct qv_guest_view *view)
{
    view->users++;
}

/** qv_guest_view_leave - may free the view. */
void qv_guest_view_leave(struct qv_guest_view *view);

/** qv_guest_view_ptr - host pointer of [@gpa, @gpa + @len) when it lies in one region (which must
 * be writable when @write); NULL otherwise. @len > 0. */
void *qv_guest_view_ptr(struct qv_guest_view *view, uint64_t gpa, uint64_t len, bool write);

/**
 * qv_guest_view_iov - fills @iov with the pieces of [@gpa, @gpa + @len), which may span regions.
 * Returns the entries used; -EFAULT when some of it is no (writable) memory, -E2BIG when more than
 * @max entries are needed. @len > 0.
 */
int qv_guest_view_iov(struct qv_guest_view *view, uint64_t gpa, uint64_t len, bool write,
                      struct iovec *iov, unsigned max);

/** qv_guest_view_read - copies @len bytes at @gpa out; may span regions. 0 or -EFAULT. */
int qv_guest_view_read(struct qv_guest_view *view, uint64_t gpa, void *buf, uint64_t len);

#endif
