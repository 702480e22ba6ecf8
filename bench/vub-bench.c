// SPDX-License-Identifier: MIT
/*
 * vub-bench - load generator and data checker for vhost-user-blk servers
 *
 * A client of its own: it speaks to the server through libblkio's
 * "virtio-blk-vhost-user" driver, so nothing here is shared with the server
 * under test.  One thread drives each virtqueue.  See README.md next to this
 * file for how to build and use it.
 *
 * What it reports for the measured window: IOPS, MiB/s, latency (mean and
 * percentiles), CPU used by the client and, with --server-pid, CPU used by the
 * server and the CPU cost of one I/O.
 *
 * fill/check/verify write and check a pattern that encodes, in every 512-byte
 * sector, the sector number and a seed; any misplaced, stale, torn or corrupted
 * sector is found.
 *
 * Exit status: 0 fine, 1 an I/O failed or data was wrong, 2 usage or set-up.
 */
#define _GNU_SOURCE
#include <blkio.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define SECTOR       512u
#define MAX_PIDS     16
#define MAX_QUEUES   256
#define MAX_DEPTH    4096
#define ERRORS_SHOWN 8

/* Latency histogram: 64 linear steps in each power of two, so a bucket is at
 * most 1.6 % wide. */
#define SUB_BITS 6
#define SUB      (1u << SUB_BITS)
#define BUCKETS  ((64 - SUB_BITS) * SUB)

enum op { OP_READ, OP_WRITE, OP_DISCARD, OP_ZEROES, OP_FLUSH };

enum workload { WL_TIMED, WL_FILL, WL_CHECK, WL_VERIFY };

enum phase { PH_WARMUP, PH_MEASURE, PH_STOP };

static const struct {
    const char *name;
    enum workload wl;
    enum op op;
    bool random, mix;
} modes[] = {
    {"read", WL_TIMED, OP_READ, false, false},
    {"write", WL_TIMED, OP_WRITE, false, false},
    {"rw", WL_TIMED, OP_READ, false, true},
    {"randread", WL_TIMED, OP_READ, true, false},
    {"randwrite", WL_TIMED, OP_WRITE, true, false},
    {"randrw", WL_TIMED, OP_READ, true, true},
    {"discard", WL_TIMED, OP_DISCARD, false, false},
    {"randdiscard", WL_TIMED, OP_DISCARD, true, false},
    {"zeroes", WL_TIMED, OP_ZEROES, false, false},
    {"randzeroes", WL_TIMED, OP_ZEROES, true, false},
    {"fill", WL_FILL, OP_WRITE, false, false},
    {"check", WL_CHECK, OP_READ, false, false},
    {"verify", WL_VERIFY, OP_WRITE, false, false},
};

static struct {
    const char *socket;
    const char *label;
    int mode;
    int queues;
    int depth;
    int queue_size; /* 0: chosen from depth */
    uint64_t bs;
    uint64_t offset, size; /* size 0: to the end of the device */
    double runtime, warmup;
    int read_pct;
    uint64_t flush_every;
    uint64_t seed;
    int passes;
    int stall;    /* give up after so many seconds, 0: never */
    bool shuffle; /* fill/check/verify in a scattered order */
    bool allow_zero;
    bool poll;
    bool json;
    pid_t pid[MAX_PIDS];
    int npid;
} opt = {
    .mode = 3,
    .queues = 1,
    .depth = 32,
    .bs = 4096,
    .runtime = 10,
    .warmup = 1,
    .read_pct = 70,
    .seed = 1,
    .passes = 1,
    .stall = 30,
};

struct stats {
    uint64_t ios, reads, writes, flushes, errors;
    uint64_t lat_sum, lat_min, lat_max;
    uint32_t hist[BUCKETS];
};

struct slot {
    uint64_t start_ns;
    uint64_t pos; /* byte address on the device */
    uint8_t *buf;
    enum op op;
};

struct worker {
    pthread_t tid;
    struct blkioq *q;
    int index;
    struct slot *slots;
    uint64_t rng;
    uint64_t next, end; /* block numbers, for the ordered workloads */
    uint64_t since_flush;
    enum op op; /* fill/check */
    uint64_t pass_seed;
    struct stats st;
};

static struct blkio *dev;
static struct worker *workers;
static uint64_t nblocks; /* opt.bs-sized blocks in the tested range */
static uint64_t stride;  /* coprime with nblocks: scatters an order */
static atomic_int phase;
static atomic_bool failed; /* a worker gave up */
static atomic_uint_fast64_t bad_sectors, io_errors;
static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("vub-bench: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t mix64(uint64_t x) /* splitmix64's finaliser */
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t rng_next(uint64_t *s)
{
    return mix64(*s += 0x9e3779b97f4a7c15u);
}

static uint64_t rng_below(uint64_t *s, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)rng_next(s) * n) >> 64);
}

/* ---- pattern ----------------------------------------------------------- */

static void pattern_sector(uint64_t *w, uint64_t sector, uint64_t seed)
{
    uint64_t s = mix64(sector + 1) ^ mix64(seed * 0x9e3779b97f4a7c15u + 7);

    w[0] = sector;
    w[1] = seed;
    for (unsigned i = 2; i < SECTOR / 8; i++)
        w[i] = rng_next(&s);
}

static void pattern_fill(uint8_t *buf, uint64_t pos, uint64_t len, uint64_t seed)
{
    for (uint64_t o = 0; o < len; o += SECTOR)
        pattern_sector((uint64_t *)(buf + o), (pos + o) / SECTOR, seed);
}

static bool all_zero(const uint8_t *p, size_t n)
{
    return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

static void pattern_check(const uint8_t *buf, uint64_t pos, uint64_t len, uint64_t seed)
{
    uint64_t want[SECTOR / 8];

    for (uint64_t o = 0; o < len; o += SECTOR) {
        const uint64_t *got = (const uint64_t *)(buf + o);
        uint64_t sector = (pos + o) / SECTOR;

        pattern_sector(want, sector, seed);
        if (memcmp(want, got, SECTOR) == 0)
            continue;
        bool zero = all_zero(buf + o, SECTOR);
        if (zero && opt.allow_zero)
            continue;
        if (atomic_fetch_add(&bad_sectors, 1) >= ERRORS_SHOWN)
            continue;
        unsigned i = 0;
        while (want[i] == got[i])
            i++;
        pthread_mutex_lock(&report_lock);
        if (zero)
            fprintf(stderr, "bad data: sector %" PRIu64 ": reads as zeros\n", sector);
        else if (i == 0)
            fprintf(stderr,
                    "bad data: sector %" PRIu64 ": holds sector number %" PRIu64 ", seed %" PRIu64
                    " (wanted seed %" PRIu64 ")\n",
                    sector, got[0], got[1], seed);
        else if (i == 1)
            fprintf(stderr,
                    "bad data: sector %" PRIu64 ": stale or foreign, seed %" PRIu64
                    " (wanted %" PRIu64 ")\n",
                    sector, got[1], seed);
        else
            fprintf(stderr,
                    "bad data: sector %" PRIu64 ": differs from byte %u: "
                    "%016" PRIx64 " (wanted %016" PRIx64 ")\n",
                    sector, i * 8, got[i], want[i]);
        pthread_mutex_unlock(&report_lock);
    }
}

/* ---- latency histogram ------------------------------------------------- */

static unsigned bucket_of(uint64_t ns)
{
    if (ns < SUB)
        return (unsigned)ns;
    unsigned top = 63u - (unsigned)__builtin_clzll(ns);
    unsigned shift = top - SUB_BITS;
    return (shift + 1) * SUB + (unsigned)((ns >> shift) & (SUB - 1));
}

static uint64_t bucket_mid(unsigned b)
{
    if (b < SUB)
        return b;
    unsigned shift = b / SUB - 1;
    uint64_t low = ((uint64_t)SUB + b % SUB) << shift;
    return low + ((1ull << shift) >> 1);
}

static double percentile_us(const struct stats *st, double p)
{
    uint64_t total = 0, want, seen = 0;

    for (unsigned i = 0; i < BUCKETS; i++)
        total += st->hist[i];
    if (!total)
        return 0;
    want = (uint64_t)(p / 100.0 * (double)total + 0.5);
    if (want < 1)
        want = 1;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += st->hist[i];
        if (seen >= want)
            return (double)bucket_mid(i) / 1000.0;
    }
    return (double)st->lat_max / 1000.0;
}

static void stats_add(struct stats *st, const struct slot *s, uint64_t t)
{
    uint64_t ns = t - s->start_ns;

    st->ios++;
    if (s->op == OP_READ)
        st->reads++;
    else
        st->writes++;
    st->lat_sum += ns;
    if (ns < st->lat_min)
        st->lat_min = ns;
    if (ns > st->lat_max)
        st->lat_max = ns;
    st->hist[bucket_of(ns)]++;
}

static void stats_merge(struct stats *to, const struct stats *from)
{
    to->ios += from->ios;
    to->reads += from->reads;
    to->writes += from->writes;
    to->flushes += from->flushes;
    to->errors += from->errors;
    to->lat_sum += from->lat_sum;
    if (from->lat_min < to->lat_min)
        to->lat_min = from->lat_min;
    if (from->lat_max > to->lat_max)
        to->lat_max = from->lat_max;
    for (unsigned i = 0; i < BUCKETS; i++)
        to->hist[i] += from->hist[i];
}

/* ---- CPU accounting ---------------------------------------------------- */

/* CPU seconds of all threads of the server processes, ended threads and
 * io_uring workers included. */
static double server_cpu(void)
{
    double sum = 0;

    for (int i = 0; i < opt.npid; i++) {
        clockid_t clk;
        struct timespec ts;

        if (clock_getcpuclockid(opt.pid[i], &clk) != 0 || clock_gettime(clk, &ts) < 0)
            die("cannot read the CPU clock of process %d", (int)opt.pid[i]);
        sum += (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
    }
    return sum;
}

static double client_cpu(void)
{
    struct rusage ru;

    getrusage(RUSAGE_SELF, &ru);
    return (double)ru.ru_utime.tv_sec + (double)ru.ru_utime.tv_usec / 1e6 +
           (double)ru.ru_stime.tv_sec + (double)ru.ru_stime.tv_usec / 1e6;
}

/* ---- workers ----------------------------------------------------------- */

static void issue(struct worker *w, struct slot *s)
{
    s->start_ns = now_ns();
    switch (s->op) {
    case OP_READ:
        blkioq_read(w->q, s->pos, s->buf, opt.bs, s, 0);
        break;
    case OP_WRITE:
        blkioq_write(w->q, s->pos, s->buf, opt.bs, s, 0);
        break;
    case OP_DISCARD:
        blkioq_discard(w->q, s->pos, opt.bs, s, 0);
        break;
    case OP_ZEROES:
        blkioq_write_zeroes(w->q, s->pos, opt.bs, s, 0);
        break;
    case OP_FLUSH:
        blkioq_flush(w->q, s, 0);
        break;
    }
}

/* Choose and submit the next request of a slot.  False: nothing left to do. */
static bool next_request(struct worker *w, struct slot *s)
{
    const bool timed = modes[opt.mode].wl == WL_TIMED;
    uint64_t block;

    s->op = w->op;
    if (timed) {
        if (atomic_load_explicit(&phase, memory_order_relaxed) == PH_STOP)
            return false;
        if (modes[opt.mode].mix)
            s->op = rng_below(&w->rng, 100) < (uint64_t)opt.read_pct ? OP_READ : OP_WRITE;
        if (opt.flush_every && s->op != OP_READ && w->since_flush++ >= opt.flush_every) {
            w->since_flush = 0;
            s->op = OP_FLUSH;
            issue(w, s);
            return true;
        }
        if (modes[opt.mode].random) {
            block = rng_below(&w->rng, nblocks);
        } else {
            block = w->next++;
            if (w->next >= w->end)
                w->next = (uint64_t)w->index * nblocks / (uint64_t)opt.queues;
        }
    } else {
        if (w->next >= w->end || atomic_load_explicit(&failed, memory_order_relaxed))
            return false;
        block = w->next++;
        if (opt.shuffle)
            block = (uint64_t)((unsigned __int128)block * stride % nblocks);
    }
    s->pos = opt.offset + block * opt.bs;
    if (!timed && s->op == OP_WRITE)
        pattern_fill(s->buf, s->pos, opt.bs, w->pass_seed);
    else if (!timed && s->op == OP_READ)
        memset(s->buf, 0xa5, opt.bs); /* a read that moves no data is seen */
    issue(w, s);
    return true;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    const bool timed = modes[opt.mode].wl == WL_TIMED;
    struct blkio_completion *c = calloc((size_t)opt.depth, sizeof(*c));
    int in_flight = 0;

    if (!c)
        die("out of memory");
    for (int i = 0; i < opt.depth; i++)
        if (next_request(w, &w->slots[i]))
            in_flight++;
    while (in_flight > 0) {
        struct timespec limit = {.tv_sec = opt.stall};
        int n = blkioq_do_io(w->q, c, 1, opt.depth, opt.stall ? &limit : NULL);

        if (n == -ETIME || n == -ETIMEDOUT) {
            fprintf(stderr,
                    "queue %d: nothing completed for %d s, %d in flight; "
                    "is the server gone?\n",
                    w->index, opt.stall, in_flight);
            atomic_fetch_add(&io_errors, 1);
            atomic_store(&failed, true);
            break;
        }
        if (n < 0) {
            fprintf(stderr, "queue %d: %s\n", w->index, blkio_get_error_msg());
            atomic_fetch_add(&io_errors, 1);
            atomic_store(&failed, true);
            break;
        }
        uint64_t t = now_ns();
        bool record = !timed || atomic_load_explicit(&phase, memory_order_relaxed) == PH_MEASURE;

        for (int i = 0; i < n; i++) {
            struct slot *s = c[i].user_data;

            in_flight--;
            if (c[i].ret != 0) {
                if (atomic_fetch_add(&io_errors, 1) < ERRORS_SHOWN)
                    fprintf(stderr, "queue %d: op %d at %" PRIu64 ": %s\n", w->index, (int)s->op,
                            s->pos, strerror(-c[i].ret));
                w->st.errors++;
                if (w->st.errors > 1000)
                    atomic_store(&failed, true);
            } else if (s->op == OP_FLUSH) {
                w->st.flushes += record;
            } else {
                if (record)
                    stats_add(&w->st, s, t);
                if (!timed && s->op == OP_READ)
                    pattern_check(s->buf, s->pos, opt.bs, w->pass_seed);
            }
            if (!atomic_load_explicit(&failed, memory_order_relaxed) && next_request(w, s))
                in_flight++;
        }
    }
    free(c);
    return NULL;
}

static void flush_device(void)
{
    struct blkio_completion c;

    blkioq_flush(workers[0].q, NULL, 0);
    if (blkioq_do_io(workers[0].q, &c, 1, 1, NULL) != 1 || c.ret != 0) {
        fprintf(stderr, "flush failed\n");
        atomic_fetch_add(&io_errors, 1);
    }
}

/* Run all workers once over their part of the range (fill or check), or until
 * the time is up.  Returns the seconds measured. */
static double run_workers(enum op op, uint64_t seed, double *scpu, double *ccpu)
{
    const bool timed = modes[opt.mode].wl == WL_TIMED;
    double s0 = 0, c0 = 0;
    uint64_t t0, t1 = 0;

    atomic_store(&phase, timed && opt.warmup > 0 ? PH_WARMUP : PH_MEASURE);
    for (int i = 0; i < opt.queues; i++) {
        struct worker *w = &workers[i];

        w->op = op;
        w->pass_seed = seed;
        w->rng = mix64(opt.seed + 1) + (uint64_t)i * 0x1000003u;
        w->next = (uint64_t)i * nblocks / (uint64_t)opt.queues;
        w->end = (uint64_t)(i + 1) * nblocks / (uint64_t)opt.queues;
        memset(&w->st, 0, sizeof(w->st));
        w->st.lat_min = UINT64_MAX;
    }
    t0 = now_ns();
    s0 = server_cpu();
    c0 = client_cpu();
    for (int i = 0; i < opt.queues; i++)
        if (pthread_create(&workers[i].tid, NULL, worker_main, &workers[i]) != 0)
            die("cannot start a thread");
    if (timed) {
        if (opt.warmup > 0) {
            usleep((useconds_t)(opt.warmup * 1e6));
            s0 = server_cpu();
            c0 = client_cpu();
            t0 = now_ns();
            atomic_store(&phase, PH_MEASURE);
        }
        while (!atomic_load(&failed)) {
            double left = opt.runtime - (double)(now_ns() - t0) / 1e9;

            if (left <= 0)
                break;
            usleep((useconds_t)((left > 0.2 ? 0.2 : left) * 1e6));
        }
        t1 = now_ns();
        *scpu = server_cpu() - s0;
        *ccpu = client_cpu() - c0;
        atomic_store(&phase, PH_STOP);
    }
    for (int i = 0; i < opt.queues; i++)
        pthread_join(workers[i].tid, NULL);
    if (!timed) {
        t1 = now_ns();
        *scpu = server_cpu() - s0;
        *ccpu = client_cpu() - c0;
    }
    return (double)(t1 - t0) / 1e9;
}

/* ---- report ------------------------------------------------------------ */

static void report(const char *what, double secs, double scpu, double ccpu)
{
    struct stats *st = calloc(1, sizeof(*st));

    if (!st)
        die("out of memory");
    st->lat_min = UINT64_MAX;
    for (int i = 0; i < opt.queues; i++)
        stats_merge(st, &workers[i].st);
    if (st->ios == 0)
        st->lat_min = 0;

    double n = st->ios ? (double)st->ios : 1;
    double iops = secs > 0 ? (double)st->ios / secs : 0;
    double mib = iops * (double)opt.bs / 1048576.0;
    double mean = (double)st->lat_sum / n / 1000.0;
    double p50 = percentile_us(st, 50), p99 = percentile_us(st, 99);
    double p999 = percentile_us(st, 99.9);
    uint64_t errs = atomic_load(&io_errors), bad = atomic_load(&bad_sectors);

    if (opt.json) {
        printf("{\"label\":\"%s\",\"rw\":\"%s\",\"queues\":%d,\"depth\":%d,\"bs\":%" PRIu64
               ",\"seconds\":%.3f,\"ios\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"writes\":%" PRIu64
               ",\"flushes\":%" PRIu64 ",\"iops\":%.1f,\"mib_s\":%.2f,"
               "\"lat_us\":{\"mean\":%.2f,\"min\":%.2f,\"p50\":%.2f,\"p99\":%.2f,"
               "\"p99_9\":%.2f,\"max\":%.2f},\"client_cpu_s\":%.3f,\"client_us_per_io\":%.3f",
               opt.label ? opt.label : "", what, opt.queues, opt.depth, opt.bs, secs, st->ios,
               st->reads, st->writes, st->flushes, iops, mib, mean, (double)st->lat_min / 1e3, p50,
               p99, p999, (double)st->lat_max / 1e3, ccpu, ccpu * 1e6 / n);
        if (opt.npid)
            printf(",\"server_cpu_s\":%.3f,\"server_us_per_io\":%.3f", scpu, scpu * 1e6 / n);
        printf(",\"io_errors\":%" PRIu64 ",\"bad_sectors\":%" PRIu64 "}\n", errs, bad);
    } else {
        printf("%s%s%s: %d queue(s) x depth %d, %" PRIu64 "-byte blocks, %.2f s\n",
               opt.label ? opt.label : "", opt.label ? " " : "", what, opt.queues, opt.depth,
               opt.bs, secs);
        printf("  IOPS %.0f   %.1f MiB/s   (%" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64
               " flushes)\n",
               iops, mib, st->reads, st->writes, st->flushes);
        printf("  latency us: mean %.1f  min %.1f  p50 %.1f  p99 %.1f  p99.9 %.1f  max %.1f\n",
               mean, (double)st->lat_min / 1e3, p50, p99, p999, (double)st->lat_max / 1e3);
        printf("  client CPU: %.2f s, %.2f us per I/O\n", ccpu, ccpu * 1e6 / n);
        if (opt.npid)
            printf("  server CPU: %.2f s, %.2f us per I/O, %.0f %% of one core\n", scpu,
                   scpu * 1e6 / n, secs > 0 ? scpu / secs * 100 : 0);
        if (errs || bad)
            printf("  I/O errors: %" PRIu64 "   bad sectors: %" PRIu64 "\n", errs, bad);
    }
    fflush(stdout);
    free(st);
}

/* ---- set-up ------------------------------------------------------------ */

static void bk(int ret, const char *what)
{
    if (ret < 0)
        die("%s: %s", what, blkio_get_error_msg());
}

static uint64_t gcd64(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t t = a % b;
        a = b;
        b = t;
    }
    return a;
}

static void setup_device(void)
{
    int max_queues = 0, max_qsize = 0, qsize = opt.queue_size;
    uint64_t capacity = 0, align = 0, per_slot, len;
    struct blkio_mem_region region;

    bk(blkio_create("virtio-blk-vhost-user", &dev), "create");
    bk(blkio_set_str(dev, "path", opt.socket), "path");
    if (modes[opt.mode].op == OP_READ && !modes[opt.mode].mix)
        bk(blkio_set_bool(dev, "read-only", true), "read-only");
    bk(blkio_connect(dev), "connect");

    bk(blkio_get_int(dev, "max-queues", &max_queues), "max-queues");
    if (opt.queues > max_queues)
        die("the server offers %d queue(s), %d asked", max_queues, opt.queues);
    if (blkio_get_int(dev, "max-queue-size", &max_qsize) < 0 || max_qsize <= 0)
        max_qsize = 256;
    if (!qsize) /* a request takes three descriptors */
        for (qsize = 128; qsize < 3 * opt.depth; qsize *= 2)
            ;
    if (qsize > max_qsize)
        qsize = max_qsize;
    bk(blkio_set_int(dev, "queue-size", qsize), "queue-size");
    bk(blkio_set_int(dev, "num-queues", opt.poll ? 0 : opt.queues), "num-queues");
    bk(blkio_set_int(dev, "num-poll-queues", opt.poll ? opt.queues : 0), "num-poll-queues");
    bk(blkio_start(dev), "start");

    bk(blkio_get_uint64(dev, "capacity", &capacity), "capacity");
    bk(blkio_get_uint64(dev, "mem-region-alignment", &align), "mem-region-alignment");
    if (opt.offset >= capacity)
        die("the device has only %" PRIu64 " bytes", capacity);
    if (!opt.size || opt.size > capacity - opt.offset)
        opt.size = capacity - opt.offset;
    nblocks = opt.size / opt.bs;
    if (nblocks < (uint64_t)opt.queues)
        die("the tested range holds fewer blocks than there are queues");
    stride = (uint64_t)((double)nblocks * 0.6180339887) | 1;
    while (gcd64(stride, nblocks) != 1)
        stride += 2;

    per_slot = (opt.bs + 4095) & ~4095ull;
    len = per_slot * (uint64_t)opt.depth * (uint64_t)opt.queues;
    if (align)
        len = (len + align - 1) / align * align;
    bk(blkio_alloc_mem_region(dev, &region, len), "memory region");
    bk(blkio_map_mem_region(dev, &region), "map memory region");

    uint64_t s = mix64(opt.seed); /* incompressible data for plain writes */
    for (uint64_t o = 0; o + 8 <= len; o += 8)
        *(uint64_t *)((uint8_t *)region.addr + o) = rng_next(&s);

    workers = calloc((size_t)opt.queues, sizeof(*workers));
    if (!workers)
        die("out of memory");
    for (int i = 0; i < opt.queues; i++) {
        workers[i].index = i;
        workers[i].q = opt.poll ? blkio_get_poll_queue(dev, i) : blkio_get_queue(dev, i);
        workers[i].slots = calloc((size_t)opt.depth, sizeof(struct slot));
        if (!workers[i].slots)
            die("out of memory");
        for (int d = 0; d < opt.depth; d++)
            workers[i].slots[d].buf = (uint8_t *)region.addr +
                                      per_slot * ((uint64_t)i * (uint64_t)opt.depth + (uint64_t)d);
    }
}

static uint64_t parse_size(const char *s)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 0);

    if (errno || end == s)
        die("bad size: %s", s);
    switch (*end) {
    case 'k':
    case 'K':
        v <<= 10;
        end++;
        break;
    case 'm':
    case 'M':
        v <<= 20;
        end++;
        break;
    case 'g':
    case 'G':
        v <<= 30;
        end++;
        break;
    case 't':
    case 'T':
        v <<= 40;
        end++;
        break;
    default:
        break;
    }
    if (*end)
        die("bad size: %s", s);
    return v;
}

static int parse_int(const char *s, int lo, int hi, const char *what)
{
    char *end;
    errno = 0;
    long v = strtol(s, &end, 0);

    if (errno || end == s || *end || v < lo || v > hi)
        die("%s must be %d to %d, not %s", what, lo, hi, s);
    return (int)v;
}

static void usage(FILE *f)
{
    fputs("usage: vub-bench --socket PATH [options]\n"
          "  -s, --socket PATH      the server's vhost-user socket\n"
          "  -r, --rw MODE          read write rw randread randwrite randrw (timed)\n"
          "                         discard randdiscard zeroes randzeroes   (timed)\n"
          "                         fill    write the pattern over the range once\n"
          "                         check   read the range once and check the pattern\n"
          "                         verify  fill, flush, check, --passes times\n"
          "                         (default randread)\n"
          "  -q, --queues N         virtqueues, one thread each (default 1)\n"
          "  -d, --depth N          requests in flight per queue (default 32)\n"
          "  -b, --bs SIZE          block size, a multiple of 512 (default 4k)\n"
          "  -t, --runtime SEC      measured time (default 10)\n"
          "  -w, --warmup SEC       time before it, not measured (default 1)\n"
          "  -p, --read-pct N       reads in rw and randrw, percent (default 70)\n"
          "  -F, --flush-every N    a flush after every N writes of a queue\n"
          "  -o, --offset SIZE      start of the tested range (default 0)\n"
          "  -S, --size SIZE        length of the tested range (default: all)\n"
          "  -e, --seed N           seed of the pattern and of the random addresses\n"
          "  -n, --passes N         passes of verify; each uses the next seed\n"
          "  -x, --shuffle          fill, check and verify in a scattered order\n"
          "  -z, --allow-zero       check: zeros are right too (never written)\n"
          "  -Q, --queue-size N     virtqueue size (default: from the depth)\n"
          "  -T, --stall SEC        give up when nothing completes for so long (default 30)\n"
          "  -P, --poll             poll for completions instead of sleeping\n"
          "  -c, --server-pid PID   count this process's CPU time (may be repeated)\n"
          "  -l, --label TEXT       put TEXT in the report\n"
          "  -j, --json             report as one line of JSON\n",
          f);
}

static void parse_args(int argc, char **argv)
{
    static const struct option lo[] = {{"socket", 1, 0, 's'},
                                       {"rw", 1, 0, 'r'},
                                       {"queues", 1, 0, 'q'},
                                       {"depth", 1, 0, 'd'},
                                       {"bs", 1, 0, 'b'},
                                       {"runtime", 1, 0, 't'},
                                       {"warmup", 1, 0, 'w'},
                                       {"read-pct", 1, 0, 'p'},
                                       {"flush-every", 1, 0, 'F'},
                                       {"offset", 1, 0, 'o'},
                                       {"size", 1, 0, 'S'},
                                       {"seed", 1, 0, 'e'},
                                       {"passes", 1, 0, 'n'},
                                       {"shuffle", 0, 0, 'x'},
                                       {"allow-zero", 0, 0, 'z'},
                                       {"queue-size", 1, 0, 'Q'},
                                       {"poll", 0, 0, 'P'},
                                       {"stall", 1, 0, 'T'},
                                       {"server-pid", 1, 0, 'c'},
                                       {"label", 1, 0, 'l'},
                                       {"json", 0, 0, 'j'},
                                       {"help", 0, 0, 'h'},
                                       {0, 0, 0, 0}};
    int ch;

    while ((ch = getopt_long(argc, argv, "s:r:q:d:b:t:w:p:F:o:S:e:n:xzQ:T:Pc:l:jh", lo, NULL)) !=
           -1) {
        switch (ch) {
        case 's':
            opt.socket = optarg;
            break;
        case 'r':
            opt.mode = -1;
            for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
                if (!strcmp(optarg, modes[i].name))
                    opt.mode = (int)i;
            if (opt.mode < 0)
                die("unknown --rw %s", optarg);
            break;
        case 'q':
            opt.queues = parse_int(optarg, 1, MAX_QUEUES, "--queues");
            break;
        case 'd':
            opt.depth = parse_int(optarg, 1, MAX_DEPTH, "--depth");
            break;
        case 'b':
            opt.bs = parse_size(optarg);
            break;
        case 't':
            opt.runtime = atof(optarg);
            break;
        case 'w':
            opt.warmup = atof(optarg);
            break;
        case 'p':
            opt.read_pct = parse_int(optarg, 0, 100, "--read-pct");
            break;
        case 'F':
            opt.flush_every = parse_size(optarg);
            break;
        case 'o':
            opt.offset = parse_size(optarg);
            break;
        case 'S':
            opt.size = parse_size(optarg);
            break;
        case 'e':
            opt.seed = parse_size(optarg);
            break;
        case 'n':
            opt.passes = parse_int(optarg, 1, 1000000, "--passes");
            break;
        case 'x':
            opt.shuffle = true;
            break;
        case 'z':
            opt.allow_zero = true;
            break;
        case 'Q':
            opt.queue_size = parse_int(optarg, 2, 32768, "--queue-size");
            break;
        case 'T':
            opt.stall = parse_int(optarg, 0, 86400, "--stall");
            break;
        case 'P':
            opt.poll = true;
            break;
        case 'c':
            if (opt.npid == MAX_PIDS)
                die("too many --server-pid");
            opt.pid[opt.npid++] = parse_int(optarg, 1, INT32_MAX, "--server-pid");
            break;
        case 'l':
            opt.label = optarg;
            break;
        case 'j':
            opt.json = true;
            break;
        case 'h':
            usage(stdout);
            exit(0);
        default:
            usage(stderr);
            exit(2);
        }
    }
    if (!opt.socket || optind != argc) {
        usage(stderr);
        exit(2);
    }
    if (!opt.bs || opt.bs % SECTOR || opt.offset % SECTOR || opt.bs > (64u << 20))
        die("--bs and --offset must be multiples of 512, --bs at most 64M");
    if (opt.runtime <= 0)
        die("--runtime must be more than 0");
}

int main(int argc, char **argv)
{
    double scpu = 0, ccpu = 0, secs;

    parse_args(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    setup_device();

    const char *name = modes[opt.mode].name;
    switch (modes[opt.mode].wl) {
    case WL_TIMED:
        secs = run_workers(modes[opt.mode].op, opt.seed, &scpu, &ccpu);
        report(name, secs, scpu, ccpu);
        if (!atomic_load(&failed) && (modes[opt.mode].op != OP_READ || modes[opt.mode].mix))
            flush_device();
        break;
    case WL_FILL:
    case WL_CHECK:
        secs = run_workers(modes[opt.mode].op, opt.seed, &scpu, &ccpu);
        if (modes[opt.mode].wl == WL_FILL && !atomic_load(&failed))
            flush_device();
        report(name, secs, scpu, ccpu);
        break;
    case WL_VERIFY:
        for (int p = 0; p < opt.passes && !atomic_load(&failed); p++) {
            uint64_t seed = opt.seed + (uint64_t)p;

            secs = run_workers(OP_WRITE, seed, &scpu, &ccpu);
            report("verify-write", secs, scpu, ccpu);
            if (atomic_load(&failed))
                break;
            flush_device();
            secs = run_workers(OP_READ, seed, &scpu, &ccpu);
            report("verify-read", secs, scpu, ccpu);
        }
        break;
    }
    bool ok = !atomic_load(&failed) && !atomic_load(&io_errors) && !atomic_load(&bad_sectors);
    if (modes[opt.mode].wl != WL_TIMED && !opt.json)
        puts(ok ? "data: all sectors right" : "data: FAILED");
    if (!atomic_load(&failed)) /* never tear down with requests in flight */
        blkio_destroy(&dev);
    return ok ? 0 : 1;
}
