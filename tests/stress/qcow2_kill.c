/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that works on a qcow2 image is killed (SIGKILL) at any moment, again and again; the
 * next one takes over with the same journal, as an I/O process does whose guest goes on. Writes,
 * zeroes, discards, snapshots made, deleted and restored, growing. All that was completed must be
 * there, what was under way is old or new, snapshots as they were made; by our reader, our check
 * and qemu-img.
 *
 *   qcow2_kill [--seed N] [--seconds N] [--cluster-bits N] [--backing] [--extended-l2]
 *              [--data-file] [--dir DIR] [--qemu-img PROGRAM]
 *
 * The parent has no threads: children do all work, and tell in shared memory what they begin and
 * end.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/file/file.h"
#include "base/error.h"
#include "base/maths.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot.h"
#include "format/qcow2/walk.h"
#include "format/raw/raw.h"
#include "io/thread.h"

#define SECTOR           512u
#define WORDS            (SECTOR / sizeof(uint64_t))
#define SECTORS_MAX      8192u /* of the disk */
#define SECTORS_FIRST    3000u
#define OPS_MAX          4000u /* of one process */
#define SNAPSHOTS_MAX    4u
#define LEN_MAX          (192u * 1024u)
#define LIFE_MAX_US      60000
#define TAKE_OVER_MAX_US 4000

static struct {
    int seed, seconds, cluster_bits;
    gboolean backing, extended_l2, data_file;
    char *dir, *qemu_img;
} opt = {.seed = 1, .seconds = 3, .cluster_bits = 12};

enum kind { WRITE, ZERO, UNMAP, DISCARD, FLUSH, CREATE, DELETE, RESTORE, GROW };

struct op {
    enum kind kind;
    uint32_t id;           /* of what is written; the snapshot's number */
    uint32_t first, count; /* sectors; GROW: first is the new size */
};

/* A disk's content: the id of each sector; 0: zeros. */
struct content {
    uint32_t sectors;
    uint32_t id[SECTORS_MAX];
};

struct snap {
    uint32_t number; /* 0: none here */
    struct content content;
};

/* Written by a child, read by the parent when it is gone. */
struct shared {
    _Atomic uint32_t begun, done; /* operations */
    _Atomic bool failed;
    struct op op[OPS_MAX];
    struct content disk; /* what a child that looked has found */
    struct snap snap[SNAPSHOTS_MAX];
    uint32_t corruptions;
};

static struct shared *shared;
static int journal = -1;
static char *image_path, *backing_path, *data_path, *raw_path;
static uint32_t next_id = 2, next_snapshot = 1; /* id 1 is the backing image's */
static struct content disk;                     /* the model */
static struct snap snaps[SNAPSHOTS_MAX];

static _Noreturn void die(const char *what, const GError *error)
{
    fprintf(stderr, "%s%s%s (seed %d)\n", what, error != NULL ? ": " : "",
            error != NULL ? error->message : "", opt.seed);
    abort();
}

/* ---- in children ---- */

static struct qv_node *open_file(const char *path, int flags)
{
    struct qv_file_opts opts = {
        .name = path, .engine = QV_ENGINE_THREADS, .readonly = (flags & O_ACCMODE) == O_RDONLY};
    struct qv_node *file = NULL;
    GError *error = NULL;
    int fd = open(path, flags | O_CLOEXEC, 0600);

    if (fd < 0 || !qv_file_new(fd, &opts, &file, &error)) {
        die(path, error);
    }
    return file;
}

static struct qv_node *co_open(const char *snapshot)
{
    bool readonly = snapshot != NULL;
    struct qcow2_open_opts opts = {.name = image_path,
                                   .readonly = readonly,
                                   .snapshot = snapshot,
                                   .journal_fd = readonly ? 0 : journal};
    struct qv_node *node = NULL;
    GError *error = NULL;

    if (opt.backing && !qv_raw_co_open(open_file(backing_path, O_RDONLY), backing_path, true,
                                       &opts.backing, &error)) {
        die("backing", error);
    }
    if (opt.data_file) {
        opts.data_file = open_file(data_path, (readonly ? O_RDONLY : O_RDWR) | O_CREAT);
    }
    if (!qcow2_co_open(open_file(image_path, readonly ? O_RDONLY : O_RDWR), &opts, &node, &error)) {
        die("open", error);
    }
    return node;
}

static void co_create(void *arg)
{
    struct qcow2_create_opts opts = {
        .size = (uint64_t)SECTORS_FIRST * SECTOR,
        .cluster_size = UINT64_C(1) << opt.cluster_bits,
        .backing_file = opt.backing ? backing_path : NULL,
        .backing_format = opt.backing ? "raw" : NULL,
        .extended_l2 = opt.extended_l2,
        .data_file = opt.data_file ? data_path : NULL,
    };
    struct qv_node *file = open_file(image_path, O_RDWR | O_CREAT | O_TRUNC);
    GError *error = NULL;

    (void)arg;
    if (!qcow2_co_create(file, &opts, &error)) {
        die("create", error);
    }
    qv_node_co_close_tree(file);
}

static void name_of(uint32_t number, char name[16])
{
    snprintf(name, 16, "s%u", number);
}

static int co_snapshot(struct qv_node *node, const struct op *op)
{
    struct qcow2_delete_opts how = {.step = op->first % 2};
    struct qcow2_snapshot_opts opts;
    GError *error = NULL;
    char name[16];
    bool ok;

    name_of(op->id, name);
    opts = (struct qcow2_snapshot_opts){.name = name};
    ok = op->kind == CREATE   ? qcow2_co_snapshot_create(node, &opts, NULL, &error)
         : op->kind == DELETE ? qcow2_co_snapshot_delete(node, name, &how, &error)
                              : qcow2_co_snapshot_restore(node, name, &error);
    if (!ok) {
        die("snapshot", error);
    }
    return 0;
}

static void fill(uint64_t *words, const struct op *op)
{
    for (uint32_t i = 0; i < op->count * WORDS; i++) {
        words[i] = (uint64_t)(op->first + i / WORDS) << 32 | op->id;
    }
}

static int co_do(struct qv_node *node, const struct op *op, char *buf)
{
    uint64_t offset = (uint64_t)op->first * SECTOR, len = (uint64_t)op->count * SECTOR;

    switch (op->kind) {
    case WRITE:
        fill((uint64_t *)(void *)buf, op);
        return qv_co_pwrite(node, offset, buf, len);
    case ZERO:
    case UNMAP:
        return qv_co_zero(node, offset, len, op->kind == UNMAP ? QV_IO_MAY_UNMAP : 0);
    case DISCARD:
        return qv_co_discard(node, offset, len);
    case FLUSH:
        return qv_co_flush(node);
    case GROW:
        return qv_node_co_truncate(node, offset);
    case CREATE:
    case DELETE:
    case RESTORE:
        return co_snapshot(node, op);
    }
    return -EINVAL;
}

static void co_work(void *arg)
{
    struct qv_node *node = co_open(NULL);
    char *buf = qv_node_mem_alloc(LEN_MAX);

    (void)arg;
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        atomic_store(&shared->begun, i + 1);
        if (co_do(node, &shared->op[i], buf) != 0) {
            fprintf(stderr, "operation %u of kind %d\n", i, (int)shared->op[i].kind);
            die("a request failed", NULL);
        }
        atomic_store(&shared->done, i + 1);
    }
    free(buf);
    if (qv_node_co_close_tree(node) != 0) {
        die("close", NULL);
    }
}

static void co_read_content(struct qv_node *node, struct content *out)
{
    uint64_t size = atomic_load(&node->size);
    uint64_t *buf = qv_node_mem_alloc(LEN_MAX);

    out->sectors = (uint32_t)(size / SECTOR);
    for (uint64_t pos = 0; pos < size; pos += LEN_MAX) {
        uint64_t len = qv_min_u64(LEN_MAX, size - pos);

        if (qv_co_pread(node, pos, buf, len) != 0) {
            die("read", NULL);
        }
        for (uint32_t i = 0; i < len / SECTOR; i++) {
            const uint64_t *words = buf + i * WORDS;
            uint32_t sector = (uint32_t)(pos / SECTOR) + i;

            if (words[0] != 0 && words[0] >> 32 != sector) {
                die("a sector holds another one's data", NULL);
            }
            for (uint32_t w = 1; w < WORDS; w++) {
                if (words[w] != words[0]) {
                    die("a torn sector", NULL); /* the kernel writes a sector as a whole */
                }
            }
            out->id[sector] = (uint32_t)words[0];
        }
    }
    free(buf);
}

static void co_take_over(void *arg)
{
    (void)arg;
    if (qv_node_co_close_tree(co_open(NULL)) != 0) {
        die("close", NULL);
    }
}

/* Takes over, closes in order, checks, and reads everything. */
static void co_look(void *arg)
{
    struct qv_node *node = co_open(NULL), *file;
    struct qcow2_check found;
    GPtrArray *list = NULL;
    GError *error = NULL;

    (void)arg;
    co_read_content(node, &shared->disk);
    if (!qcow2_co_snapshot_list(node, &list, &error)) {
        die("list", error);
    }
    if (list->len > SNAPSHOTS_MAX || qv_node_co_close_tree(node) != 0) {
        die("more snapshots than were made, or close failed", NULL);
    }
    for (guint i = 0; i < list->len; i++) {
        const struct qcow2_snapshot *s = list->pdata[i];
        struct qv_node *view = co_open(s->name);

        shared->snap[i].number = (uint32_t)strtoul(s->name + 1, NULL, 10);
        co_read_content(view, &shared->snap[i].content);
        qv_node_co_close_tree(view);
    }
    g_ptr_array_unref(list);
    file = open_file(image_path, O_RDONLY);
    if (!qcow2_co_check_file(file, &found, NULL, NULL, &error)) {
        die("check", error);
    }
    for (guint i = 0; found.corruptions > 0 && i < found.details->len && i < 10; i++) {
        fprintf(stderr, "%s\n", (const char *)g_ptr_array_index(found.details, i));
    }
    shared->corruptions = (uint32_t)found.corruptions;
    qcow2_check_clear(&found);
    qv_node_co_close_tree(file);
}

static pid_t start(void (*co_fn)(void *arg))
{
    pid_t pid = fork();

    if (pid == 0) {
        struct qv_thread *thread = qv_thread_new("child", NULL);

        if (thread == NULL) {
            die("thread", NULL);
        }
        qv_thread_run_co(thread, co_fn, NULL);
        qv_thread_free(thread);
        _exit(0);
    }
    if (pid < 0) {
        die("fork", NULL);
    }
    return pid;
}

/* Whether it ended by itself, and well. */
static bool wait_for(pid_t pid, bool killed)
{
    int status = 0;

    if (waitpid(pid, &status, 0) != pid) {
        die("waitpid", NULL);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return true;
    }
    if (!(killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) {
        die("a child failed", NULL);
    }
    return false;
}

/* ---- the model ---- */

static struct snap *snap_find(struct snap *list, uint32_t number)
{
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        if (list[i].number == number) {
            return &list[i];
        }
    }
    return NULL;
}

/* Sectors of whole clusters only; a last, short one is whole. */
static void discard(struct content *c, const struct op *op)
{
    uint32_t per = (1u << opt.cluster_bits) / SECTOR, end = op->first + op->count;
    uint32_t first = (op->first + per - 1) / per * per;
    uint32_t last = end == c->sectors ? end : end / per * per;

    for (uint32_t i = first; i < last; i++) {
        c->id[i] = 0;
    }
}

static void apply(struct content *c, struct snap *list, const struct op *op)
{
    struct snap *s;

    switch (op->kind) {
    case WRITE:
    case ZERO:
    case UNMAP:
        for (uint32_t i = op->first; i < op->first + op->count; i++) {
            c->id[i] = op->kind == WRITE ? op->id : 0;
        }
        break;
    case DISCARD:
        discard(c, op);
        break;
    case GROW:
        memset(c->id + c->sectors, 0, (op->first - c->sectors) * sizeof(c->id[0]));
        c->sectors = op->first;
        break;
    case CREATE:
        s = snap_find(list, 0);
        s->number = op->id;
        s->content = *c;
        break;
    case DELETE:
        snap_find(list, op->id)->number = 0;
        break;
    case RESTORE:
        *c = snap_find(list, op->id)->content;
        break;
    case FLUSH:
        break;
    }
}

static bool same_content(const struct content *a, const struct content *b)
{
    g_assert(a != NULL && b != NULL);
    return a->sectors == b->sectors && memcmp(a->id, b->id, a->sectors * sizeof(a->id[0])) == 0;
}

static bool same_snaps(struct snap *a, struct snap *b)
{
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        struct snap *other = a[i].number != 0 ? snap_find(b, a[i].number) : NULL;

        if (a[i].number != 0 && (other == NULL || !same_content(&a[i].content, &other->content))) {
            return false;
        }
        if (b[i].number != 0 && snap_find(a, b[i].number) == NULL) {
            return false;
        }
    }
    return true;
}

static void explain(const struct content *old, const struct content *now)
{
    fprintf(stderr, "%u sectors, should be %u\n", shared->disk.sectors, old->sectors);
    for (uint32_t i = 0; i < MIN(old->sectors, shared->disk.sectors); i++) {
        if (shared->disk.id[i] != old->id[i] && shared->disk.id[i] != now->id[i]) {
            fprintf(stderr, "sector %u holds %u, should hold %u or %u\n", i, shared->disk.id[i],
                    old->id[i], now->id[i]);
            return;
        }
    }
}

/* What was found is the model after all that was done, or after what was under way as well; of
 * plain requests under way each sector may be either. */
static void judge(void)
{
    static struct content now;
    static struct snap now_snaps[SNAPSHOTS_MAX];
    uint32_t done = atomic_load(&shared->done), begun = atomic_load(&shared->begun);
    const struct op *last = begun > done ? &shared->op[done] : NULL;
    bool ok;

    for (uint32_t i = 0; i < done; i++) {
        apply(&disk, snaps, &shared->op[i]);
    }
    now = disk;
    memcpy(now_snaps, snaps, sizeof(snaps));
    if (last != NULL) {
        apply(&now, now_snaps, last);
    }
    ok = same_content(&shared->disk, &disk) || same_content(&shared->disk, &now);
    if (!ok && last != NULL && last->kind <= DISCARD && shared->disk.sectors == disk.sectors) {
        ok = true;
        for (uint32_t i = 0; i < disk.sectors; i++) {
            ok &= shared->disk.id[i] == disk.id[i] || shared->disk.id[i] == now.id[i];
        }
    }
    if (!ok) {
        explain(&disk, &now);
        die("wrong content after a kill", NULL);
    }
    if (!same_snaps(shared->snap, snaps) && !same_snaps(shared->snap, now_snaps)) {
        die("wrong snapshots after a kill", NULL);
    }
    if (shared->corruptions > 0) {
        die("corruption after a kill", NULL);
    }
    disk = shared->disk;
    memcpy(snaps, shared->snap, sizeof(snaps));
}

/* ---- plans ---- */

static void plan_range(GRand *rand, uint32_t sectors, struct op *op)
{
    uint32_t per = (1u << opt.cluster_bits) / SECTOR, max = LEN_MAX / SECTOR;

    op->first = (uint32_t)g_rand_int_range(rand, 0, (gint32)sectors);
    op->count = 1 + (uint32_t)g_rand_int_range(rand, 0, (gint32)MIN(3 * per, max));
    if (g_rand_int_range(rand, 0, 3) == 0) {
        op->first -= op->first % per;
        op->count = MIN((op->count + per - 1) / per * per, max);
    }
    op->count = MIN(op->count, sectors - op->first);
}

static struct op plan_one(GRand *rand, const struct content *c, struct snap *list)
{
    int what = g_rand_int_range(rand, 0, 1000);
    struct snap *some = &list[g_rand_int_range(rand, 0, SNAPSHOTS_MAX)];
    struct op op = {.kind = what < 500 ? WRITE : what < 600 ? ZERO : what < 720 ? UNMAP : DISCARD};

    if (what >= 850) {
        op.kind = FLUSH;
    }
    if (what >= 960 && c->sectors + 40 < SECTORS_MAX) {
        op.kind = GROW;
        op.first = c->sectors + (uint32_t)g_rand_int_range(rand, 1, 40);
        return op;
    }
    if (what >= 930 && !opt.data_file) {
        op.first = (uint32_t)what;
        if (some->number == 0) {
            op.kind = CREATE;
            op.id = next_snapshot++;
        } else {
            op.kind = what % 2 == 0 ? DELETE : RESTORE;
            op.id = some->number;
        }
        return op;
    }
    if (op.kind != FLUSH) {
        plan_range(rand, c->sectors, &op);
        op.id = op.kind == WRITE ? next_id++ : 0;
    }
    return op;
}

/* What the next child is to do; the plan knows what the disk will be. */
static void plan(GRand *rand)
{
    static struct content c;
    static struct snap list[SNAPSHOTS_MAX];

    c = disk;
    memcpy(list, snaps, sizeof(list));
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        shared->op[i] = plan_one(rand, &c, list);
        apply(&c, list, &shared->op[i]);
    }
    atomic_store(&shared->begun, 0);
    atomic_store(&shared->done, 0);
    memset(shared->snap, 0, sizeof(shared->snap));
}

/* ---- qemu-img ---- */

static void call_qemu(const char *const *argv)
{
    GError *error = NULL;
    int status = 0;

    if (!g_spawn_sync(NULL, (char **)(uintptr_t)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL,
                      NULL, &status, &error)) {
        die("qemu-img", error);
    }
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 3)) {
        die(argv[1], NULL);
    }
}

static void judge_with_qemu(void)
{
    const char *check[] = {opt.qemu_img, "check", "-q", "-f", "qcow2", image_path, NULL};
    const char *convert[] = {opt.qemu_img, "convert",  "-f",     "qcow2", "-O",
                             "raw",        image_path, raw_path, NULL};
    g_autofree char *bytes = NULL;
    GError *error = NULL;
    gsize len = 0;

    if (opt.qemu_img == NULL) {
        return;
    }
    call_qemu(check);
    call_qemu(convert);
    if (!g_file_get_contents(raw_path, &bytes, &len, &error)) {
        die("what qemu-img reads", error);
    }
    if (len != (gsize)disk.sectors * SECTOR) {
        die("size for qemu-img", NULL);
    }
    for (uint32_t i = 0; i < disk.sectors; i++) {
        uint64_t word;

        memcpy(&word, bytes + (size_t)i * SECTOR, sizeof(word));
        if ((uint32_t)word != disk.id[i]) {
            die("content for qemu-img", NULL);
        }
    }
}

/* ---- running ---- */

static void make_backing(void)
{
    uint32_t sectors = SECTORS_FIRST * 3 / 4;
    struct op op = {.kind = WRITE, .id = 1, .count = sectors};
    g_autofree char *buf = g_malloc((gsize)sectors * SECTOR);
    GError *error = NULL;

    fill((uint64_t *)(void *)buf, &op);
    apply(&disk, snaps, &op);
    if (!g_file_set_contents(backing_path, buf, (gssize)sectors * SECTOR, &error)) {
        die("backing", error);
    }
}

static void run(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed((guint32)opt.seed);
    gint64 end = g_get_monotonic_time() + opt.seconds * G_USEC_PER_SEC;
    unsigned kills = 0, rounds = 0;
    uint64_t ops = 0;

    disk.sectors = SECTORS_FIRST;
    if (opt.backing) {
        make_backing();
    }
    wait_for(start(co_create), false);
    do {
        pid_t pid;

        plan(rand);
        pid = start(co_work);
        g_usleep((gulong)g_rand_int_range(rand, 0, LIFE_MAX_US));
        kill(pid, SIGKILL);
        kills += wait_for(pid, true) ? 0 : 1;
        if (g_rand_boolean(rand)) { /* while it takes over, too */
            pid = start(co_take_over);
            g_usleep((gulong)g_rand_int_range(rand, 0, TAKE_OVER_MAX_US));
            kill(pid, SIGKILL);
            kills += wait_for(pid, true) ? 0 : 1;
        }
        wait_for(start(co_look), false);
        ops += atomic_load(&shared->done);
        judge();
        if (rounds++ % 8 == 0) {
            judge_with_qemu();
        }
    } while (g_get_monotonic_time() < end);
    judge_with_qemu();
    printf("%u kills, %" PRIu64 " operations\n", kills, ops);
}

int main(int argc, char **argv)
{
    const GOptionEntry entries[] = {
        {"seed", 0, 0, G_OPTION_ARG_INT, &opt.seed, NULL, NULL},
        {"seconds", 0, 0, G_OPTION_ARG_INT, &opt.seconds, NULL, NULL},
        {"cluster-bits", 0, 0, G_OPTION_ARG_INT, &opt.cluster_bits, NULL, NULL},
        {"backing", 0, 0, G_OPTION_ARG_NONE, &opt.backing, NULL, NULL},
        {"extended-l2", 0, 0, G_OPTION_ARG_NONE, &opt.extended_l2, NULL, NULL},
        {"data-file", 0, 0, G_OPTION_ARG_NONE, &opt.data_file, NULL, NULL},
        {"dir", 0, 0, G_OPTION_ARG_FILENAME, &opt.dir, NULL, NULL},
        {"qemu-img", 0, 0, G_OPTION_ARG_FILENAME, &opt.qemu_img, NULL, NULL},
        {0},
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autofree char *dir = NULL;
    GError *error = NULL;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        die("arguments", error);
    }
    dir = g_build_filename(opt.dir != NULL ? opt.dir : g_get_tmp_dir(), "qcow2_kill.XXXXXX", NULL);
    if (g_mkdtemp(dir) == NULL) {
        die(dir, NULL);
    }
    image_path = g_build_filename(dir, "image.qcow2", NULL);
    backing_path = g_build_filename(dir, "backing.raw", NULL);
    data_path = g_build_filename(dir, "data.raw", NULL);
    raw_path = g_build_filename(dir, "qemu.raw", NULL);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    journal = memfd_create("journal", MFD_CLOEXEC);
    if (shared == MAP_FAILED || journal < 0) {
        die("shared memory", NULL);
    }
    run();
    unlink(image_path);
    unlink(backing_path);
    unlink(data_path);
    unlink(raw_path);
    rmdir(dir);
    g_free(image_path);
    g_free(backing_path);
    g_free(data_path);
    g_free(raw_path);
    close(journal);
    munmap(shared, sizeof(*shared));
    return 0;
}
