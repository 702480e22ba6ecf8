/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as rings, descriptors and in-flight area. Promised: every buffer handed out lies in
 * guest memory and has the length announced; the ring ends, breaks or runs dry; nothing is read or
 * written elsewhere (the sanitizers watch).
 *
 * Input: kind, size, base (4), bytes of the in-flight area, the rest guest memory.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device/virtio_blk/virtq.h"

#define GUEST_SIZE 16384u
#define NUM_MAX    64u
#define IOV_MAX_   32u
#define POPS_MAX   300

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct guest {
    struct qv_guest_map *map;
    uint8_t *host;
};

static const struct guest *the_guest(void)
{
    static struct guest g;
    struct qv_guest_region *region[2];
    int fd;

    if (g.map != NULL) {
        return &g;
    }
    fd = memfd_create("fuzz", 0);
    if (fd < 0 || ftruncate(fd, 2 * GUEST_SIZE) < 0) {
        abort();
    }
    /* The second region is never filled; addresses of the first start at 0, which fuzzers find. */
    for (unsigned i = 0; i < 2; i++) {
        struct qv_guest_region_spec spec = {
            .gpa = i * GUEST_SIZE, .size = GUEST_SIZE, .fd_offset = i * GUEST_SIZE, .fd = fd};

        if (!qv_guest_region_new(&spec, &region[i], NULL)) {
            abort();
        }
    }
    if (!qv_guest_map_new(region, 2, &g.map, NULL)) {
        abort();
    }
    g.host = region[0]->host;
    return &g;
}

static void check_chain(const struct qv_guest_map *map, const struct qv_virtq_chain *c)
{
    uint64_t out = 0, in = 0, gpa;

    assert(c->out_cnt + c->in_cnt <= c->iov_max);
    for (unsigned i = 0; i < c->out_cnt + c->in_cnt; i++) {
        assert(c->iov[i].iov_len > 0);
        assert(qv_guest_map_gpa_of(map, c->iov[i].iov_base, &gpa));
        assert(gpa + c->iov[i].iov_len <= 2 * GUEST_SIZE);
        *(i < c->out_cnt ? &out : &in) += c->iov[i].iov_len;
    }
    assert(c->fault != 0 || (out == c->out_len && in == c->in_len));
}

static void run(struct qv_virtq *vq, const struct guest *g)
{
    struct qv_guest_view *view = qv_guest_view_new(g->map);
    struct qv_virtq_chain taken[8];
    struct iovec iov[IOV_MAX_];
    unsigned n = 0;

    for (int i = 0; i < POPS_MAX; i++) {
        struct qv_virtq_chain c = {.iov = iov, .iov_max = IOV_MAX_, .final = i % 2 == 0};
        int rc = qv_virtq_pop(vq, view, &c);

        if (rc == -E2BIG) {
            assert(!c.final);
            continue;
        }
        if (rc <= 0) {
            assert(rc == 0 || vq->why != NULL);
            break;
        }
        check_chain(g->map, &c);
        taken[n++] = c;
        if (n == G_N_ELEMENTS(taken)) {
            /* Newest first: out of order. */
            while (n > 0) {
                qv_virtq_push(vq, &taken[--n], (uint32_t)i);
            }
            qv_virtq_publish(vq);
            (void)qv_virtq_should_signal(vq);
            qv_virtq_kicks_off(vq);
            (void)qv_virtq_kicks_on(vq);
        }
    }
    qv_guest_view_retire(view); /* what is taken stays in flight */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct guest *g = the_guest();
    struct qv_virtq_layout l = {0};
    uint64_t desc, avail, used, area;
    struct qv_virtq vq;

    if (size < 8) {
        return 0;
    }
    l.packed = data[0] & 1;
    l.event_idx = data[0] & 2;
    l.indirect = data[0] & 4;
    l.num = data[1] % NUM_MAX + 1;
    memcpy(&l.base, data + 2, 4);
    if (!qv_virtq_size_ok(l.num, l.packed)) {
        return 0;
    }
    area = qv_virtq_inflight_size(l.num);
    l.inflight = g_malloc0(area);
    if (data[0] & 8) { /* an area that somebody else has written */
        uint64_t n = MIN(area, (size - 8) / 2);

        memcpy(l.inflight, data + 8, n);
        data += n;
        size -= n;
    }
    qv_virtq_sizes(l.num, l.packed, l.event_idx, &desc, &avail, &used);
    memset(g->host, 0, GUEST_SIZE);
    memcpy(g->host, data + 8, MIN(size - 8, GUEST_SIZE));
    l.desc = g->host;
    l.avail = g->host + desc;
    l.used = g->host + ((desc + avail + 3) & ~UINT64_C(3));
    l.used_gpa = (uint64_t)((uint8_t *)l.used - g->host);
    if (qv_virtq_start(&vq, &l, g->map, NULL, NULL)) {
        run(&vq, g);
        qv_virtq_stop(&vq);
    }
    g_free(l.inflight);
    return 0;
}
