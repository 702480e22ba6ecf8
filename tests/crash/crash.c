/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The crash-state explorer. Runs workloads on images in memory, rebuilds from the recorder's log
 * files that power loss could leave (states.h), and looks whether each is still an image that lost
 * nothing that was flushed (verify.h). README.md says how to read a failure.
 *
 *   crash [--seed N|random] [--states N] [--qemu N] [--faults N] [WORKLOAD...]
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "base/maths.h"
#include "format/qcow2/header.h"
#include "format/qcow2/rebuild.h"
#include "enc_image.h"
#include "format/encrypted/layout.h"
#include "states.h"
#include "verify.h"

static struct {
    gint64 seed;
    gint states; /* of each workload */
    gint qemu;   /* of these, shown to qemu-img */
    gint faults; /* runs with a failing request, of each workload */
    gchar *seed_text;
    gchar **names;
} args = {.seed = 1, .states = 400, .qemu = 20, .faults = 60};

struct explorer {
    struct run *run;
    struct states states;
    GRand *rng;
    GHashTable *seen; /* hashes of states that were looked at */
    unsigned budget, tested, qemu_every;
    uint64_t guest_when; /* 0: the same event as the file's; else what the guest did is complete */
    bool may_be_none;    /* the file need not be an image yet */
};

/* ---- one state ---- */

static uint64_t hash(const struct mem_file *file)
{
    uint64_t h = 0xcbf29ce484222325 ^ file->size, word;
    uint64_t i = 0;

    for (; i + 8 <= file->size; i += 8) {
        memcpy(&word, file->data + i, 8);
        h = (h ^ word) * 0x9e3779b97f4a7c15;
        h ^= h >> 29;
    }
    for (; i < file->size; i++) {
        h = (h ^ file->data[i]) * 0x100000001b3;
    }
    return h;
}

/* Puts what is needed to look into a failure beside the program that ran. */
static void save_failure(const struct explorer *e, const struct mem_file *state)
{
    g_autofree char *image = g_strdup_printf("crash-%s.image", e->run->load->name);
    g_autofree char *log = g_strdup_printf("crash-%s.log", e->run->load->name);
    QV_CLEANUP(qv_close_fd) int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd >= 0 && qv_record_log_save(&e->run->log, fd, NULL) &&
        g_file_set_contents(image, (const char *)state->data, (gssize)state->size, NULL)) {
        printf("the state is in %s, the log of all writes in %s\n", image, log);
    }
}

static bool co_try(struct explorer *e, uint64_t when, enum state_kind kind)
{
    struct mem_file state = {0}, copy = {0};
    struct verify_opts opts = {.use = true, .seed = g_rand_int(e->rng)};
    uint64_t h;
    bool ok = true;

    state_build(&state, &e->states, when, kind, e->rng);
    h = hash(&state);
    if (!g_hash_table_add(e->seen, g_memdup2(&h, sizeof(h)))) {
        mem_file_clear(&state);
        return true;
    }
    if (!e->may_be_none || (state.size >= 4 && memcmp(state.data, "QFI\xfb", 4) == 0)) {
        opts.qemu = e->qemu_every != 0 && e->tested % e->qemu_every == 0 && !e->run->load->raw;
        mem_file_set(&copy, state.data, state.size);
        ok = verify_co_image(e->run, &copy, e->guest_when != 0 ? e->guest_when : when, &opts);
        mem_file_clear(&copy);
    }
    e->tested++;
    if (!ok && e->run->liar == NULL) {
        printf("%s: power loss at event %" PRIu64 " of %" PRIu64 ", unflushed writes: %s\n",
               e->run->load->name, when, e->run->log.events, state_kind_name(kind));
        save_failure(e, &state);
    }
    mem_file_clear(&state);
    return ok;
}

/* ---- all states of a run ---- */

/* A random event; mostly one just before a flush ends, where most is open. */
static uint64_t pick_event(struct explorer *e)
{
    const GPtrArray *records = e->run->log.records;

    for (int tries = 0; tries < 8 && records->len > 0 && g_rand_int_range(e->rng, 0, 3) > 0;
         tries++) {
        guint i = (guint)g_rand_int_range(e->rng, 0, (gint32)records->len);

        for (; i < records->len; i++) {
            const struct qv_record *r = g_ptr_array_index(records, i);

            if (r->kind == QV_RECORD_FLUSH && r->ended > 0) {
                return r->ended - 1;
            }
        }
    }
    return (uint64_t)g_rand_int_range(e->rng, 0, (gint32)e->run->log.events + 1);
}

static bool co_explore(struct explorer *e)
{
    uint64_t events = e->run->log.events;
    uint64_t step = qv_max_u64(1, events * 3 / qv_max_u64(e->budget, 1));
    bool ok = true;

    /* Prefixes first: every event where the budget allows, else evenly spread. */
    for (uint64_t when = 0; ok && when <= events; when += step) {
        ok = co_try(e, when, STATE_ALL) && co_try(e, when, STATE_NONE);
    }
    for (unsigned tries = 0; ok && e->tested < e->budget && tries < 3 * e->budget; tries++) {
        ok = co_try(e, pick_event(e),
                    (enum state_kind)g_rand_int_range(e->rng, STATE_RANDOM, STATE_KINDS));
    }
    return ok;
}

/* What the medium writes whole, bytes. */
static uint32_t tear_of(const struct workload *load)
{
    return load->encrypted && load->torn != QV_ENC_TORN_ON ? 4096 : 512;
}

static void explorer_init(struct explorer *e, struct run *run, uint32_t seed)
{
    *e = (struct explorer){.run = run,
                           .rng = g_rand_new_with_seed(seed),
                           .budget = (unsigned)args.states / MAX(1, run->load->share),
                           .seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL),
                           .qemu_every =
                               args.qemu > 0 ? (unsigned)MAX(1, args.states / args.qemu) : 0};
    states_init(&e->states, &run->base, &run->log, tear_of(run->load));
}

static void explorer_clear(struct explorer *e)
{
    states_clear(&e->states);
    g_hash_table_destroy(e->seen);
    g_rand_free(e->rng);
}

/* ---- what is explored ---- */

struct task {
    const struct workload *load;
    uint32_t seed;
    bool (*co_run)(struct task *task, struct run *run);
    unsigned states;
    bool ok;
};

static bool co_explore_run(struct task *task, struct run *run, uint64_t guest_when,
                           bool may_be_none)
{
    struct explorer e;
    bool ok;

    explorer_init(&e, run, task->seed);
    e.guest_when = guest_when;
    e.may_be_none = may_be_none;
    ok = co_explore(&e);
    task->states += e.tested;
    explorer_clear(&e);
    return ok;
}

/* Whether a flush lies between the end of @a and the begin of @b. */
static bool flushed_between(const struct run *run, const struct qv_record *a,
                            const struct qv_record *b)
{
    for (guint i = 0; i < run->log.records->len; i++) {
        const struct qv_record *f = g_ptr_array_index(run->log.records, i);

        if (f->kind == QV_RECORD_FLUSH && f->began > a->ended && f->ended != 0 && f->result == 0 &&
            f->ended < b->began) {
            return true;
        }
    }
    return false;
}

/* A record of an intent log is written when the one before is durable: a gap would hide older ones
 * from the replay. */
static bool records_in_order(struct run *run)
{
    const struct qv_record *before = NULL;

    for (guint i = 0; run->load->encrypted && i < run->log.records->len; i++) {
        const struct qv_record *r = g_ptr_array_index(run->log.records, i);

        if (r->kind != QV_RECORD_WRITE || r->len < sizeof(struct enc_record_disk) ||
            memcmp(r->data, ENC_LOG_MAGIC, 8) != 0) {
            continue;
        }
        if (before != NULL && !flushed_between(run, before, r)) {
            run_fail(run,
                     "the record at event %" PRIu64 " was written when that at %" PRIu64
                     " was not durable",
                     r->began, before->began);
            return false;
        }
        before = r;
    }
    return true;
}

/* Power loss while guests work. */
static bool co_explore_workload(struct task *task, struct run *run)
{
    run_co(run);
    return run->failure == NULL && records_in_order(run) && co_explore_run(task, run, 0, false);
}

/* Power loss while guests work on a medium that fails now and then. */
static bool co_explore_faulty(struct task *task, struct run *run)
{
    struct qv_faults faults = {
        .kinds = QV_FAULT_CHANGES, .error = EIO, .torn = true, .tear = tear_of(run->load)};
    bool ok;

    run->faults = &faults;
    qv_faults_arm(&faults, (uint64_t)g_rand_int_range(run->rng, 1, 200));
    run_co(run);
    run->faults = NULL;
    ok = run->failure == NULL && co_explore_run(task, run, 0, false);
    if (!ok) {
        printf("(request %" PRIu64 " of %" PRIu64 " had failed)\n", atomic_load(&faults.nth),
               atomic_load(&faults.seen));
    }
    return ok;
}

/* The explorer itself: with a disk that does not flush it must find something. */
static bool co_explore_liar(struct task *task, struct run *run)
{
    struct qv_faults liar = {.kinds = 1u << QV_OP_FLUSH, .all_after = true, .error = 0};
    bool lost;

    run->liar = &liar;
    qv_faults_arm(&liar, 1);
    run_co(run);
    lost = run->failure == NULL && !co_explore_run(task, run, 0, false);
    if (!lost) {
        run_fail(run, "a disk that does not flush went unnoticed");
    }
    return lost;
}

static void restart_log(struct run *run)
{
    qv_record_log_clear(&run->log);
    qv_record_log_init(&run->log);
}

/* Power loss while an image is made. */
static bool co_explore_create(struct task *task, struct run *run)
{
    struct mem_file made = {.shuffle = run->rng};
    struct qv_node *node;
    g_autoptr(GError) error = NULL;
    bool ok;

    restart_log(run);
    history_index(&run->history);
    mem_file_clear(&run->base);
    node = qv_recorder_new(mem_node_new(&made, false), &run->log);
    ok = run_co_make(run, node, &error);
    qv_node_co_close_tree(node);
    mem_file_clear(&made);
    if (!ok) {
        run_fail(run, "create: %s", error->message);
        return false;
    }
    return co_explore_run(task, run, UINT64_MAX, true);
}

/* Loses the refcounts of an image, and says so in its header. */
static void damage_refcounts(struct run *run, bool table)
{
    struct mem_file *file = &run->base;
    struct qcow2_header h;
    uint64_t at, len;
    qv_be64 entry;

    if (!qcow2_header_parse(file->data, file->size, &h, NULL)) {
        run_fail(run, "the workload left no image");
        return;
    }
    file->data[79] |= QCOW2_INCOMPAT_DIRTY;
    memcpy(&entry, file->data + h.refcount_table_offset, sizeof(entry));
    at = table ? h.refcount_table_offset : qv_be64_get(entry);
    len = qcow2_cluster_size(&h);
    for (uint64_t i = 0; i < len; i++) {
        file->data[at + i] = table ? 0 : (uint8_t)g_rand_int(run->rng);
    }
    qcow2_header_clear(&h);
}

/* Power loss while a dirty image is repaired on opening. */
static bool co_explore_rebuild(struct task *task, struct run *run)
{
    bool ok = true;

    run_co(run);
    for (int table = 0; table < 2 && ok && run->failure == NULL; table++) {
        struct mem_file file = {.shuffle = run->rng};
        g_autoptr(GError) error = NULL;
        struct qv_node *node;

        mem_file_set(&run->base, run->file.data, run->file.size);
        damage_refcounts(run, table != 0);
        mem_file_set(&file, run->base.data, run->base.size);
        restart_log(run);
        node = qv_recorder_new(mem_node_new(&file, false), &run->log);
        if (!qcow2_co_rebuild_dirty(node, NULL, &error)) {
            run_fail(run, "rebuild: %s", error->message);
        }
        qv_node_co_close_tree(node);
        mem_file_clear(&file);
        ok = run->failure == NULL && co_explore_run(task, run, UINT64_MAX, false);
    }
    return ok && run->failure == NULL;
}

static void co_task(void *arg)
{
    struct task *task = arg;
    struct run run;

    run_co_init(&run, task->load, task->seed);
    task->ok = run.failure == NULL && task->co_run(task, &run);
    if (!task->ok) {
        printf("%s: %s\n", task->load->name, run.failure);
    }
    run_clear(&run);
}

/* ---- requests that fail ---- */

/* The workload with request @nth failing; what it leaves is an image, and lost nothing that was
 * flushed. */
static bool co_fault_run(struct task *task, struct qv_faults *faults, uint64_t nth)
{
    struct verify_opts opts = {
        .use = true, .seed = task->seed, .qemu = args.qemu > 0 && nth % 10 == 1};
    struct run run;
    bool ok;

    run_co_init(&run, task->load, task->seed);
    run.faults = faults;
    qv_faults_arm(faults, nth);
    run_co(&run);
    opts.qemu = opts.qemu && !task->load->raw;
    ok = run.failure == NULL && verify_co_image(&run, &run.file, UINT64_MAX, &opts);
    if (!ok) {
        printf("%s: request %" PRIu64 " failing with %s%s%s: %s\n", task->load->name, nth,
               g_strerror(faults->error), faults->all_after ? ", and all after" : "",
               faults->torn ? ", torn" : "", run.failure);
    }
    run_clear(&run);
    return ok;
}

static void co_task_faults(void *arg)
{
    struct task *task = arg;
    GRand *rng = g_rand_new_with_seed(task->seed);
    struct qv_faults faults = {.kinds = QV_FAULT_ALL, .error = EIO};
    uint64_t total, runs = (uint64_t)args.faults / MAX(1, task->load->share);

    task->ok = co_fault_run(task, &faults, 0); /* counts them */
    total = faults.seen;
    if (task->load->every_fault && runs > 0) {
        runs = total;
    }
    for (uint64_t i = 1; task->ok && i <= runs; i++) {
        /* All one by one; or the first ones, and others at random. */
        uint64_t nth = task->load->every_fault || i <= runs / 4
                           ? i
                           : (uint64_t)g_rand_int_range(rng, 1, (gint32)total + 1);

        faults.kinds = g_rand_boolean(rng) ? QV_FAULT_CHANGES : QV_FAULT_ALL;
        faults.error = g_rand_boolean(rng) ? EIO : ENOSPC;
        faults.all_after = g_rand_boolean(rng);
        faults.torn = g_rand_boolean(rng);
        faults.tear = tear_of(task->load);
        task->ok = co_fault_run(task, &faults, nth);
        task->states++;
    }
    g_rand_free(rng);
}

/* ---- main ---- */

static bool wanted(const char *name)
{
    return args.names == NULL || g_strv_contains((const char *const *)args.names, name);
}

static bool run_task(struct qv_thread *thread, struct task *task, const char *what,
                     void (*co)(void *arg))
{
    gint64 start = g_get_monotonic_time();

    qv_thread_run_co(thread, co, task);
    printf("%-6s %-14s %-10s %5u states %6.1f s\n", task->ok ? "ok" : "FAILED", task->load->name,
           what, task->states, (double)(g_get_monotonic_time() - start) / 1e6);
    fflush(stdout);
    return task->ok;
}

static bool parse_args(int *argc, char ***argv)
{
    const GOptionEntry entries[] = {
        {"seed", 0, 0, G_OPTION_ARG_STRING, &args.seed_text, "a number, or \"random\"", "N"},
        {"states", 0, 0, G_OPTION_ARG_INT, &args.states, "states of each workload", "N"},
        {"qemu", 0, 0, G_OPTION_ARG_INT, &args.qemu, "of these shown to qemu-img", "N"},
        {"faults", 0, 0, G_OPTION_ARG_INT, &args.faults, "runs with failing requests", "N"},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_STRING_ARRAY, &args.names, NULL, "WORKLOAD..."},
        {NULL, 0, 0, 0, NULL, NULL, NULL},
    };
    GOptionContext *context = g_option_context_new(NULL);
    g_autoptr(GError) error = NULL;
    bool ok;

    g_option_context_add_main_entries(context, entries, NULL);
    ok = g_option_context_parse(context, argc, argv, &error);
    g_option_context_free(context);
    if (!ok) {
        fprintf(stderr, "crash: %s\n", error->message);
        return false;
    }
    if (args.seed_text != NULL && strcmp(args.seed_text, "random") == 0) {
        args.seed = g_random_int();
    } else if (args.seed_text != NULL) {
        args.seed = g_ascii_strtoll(args.seed_text, NULL, 10);
    }
    return true;
}

static unsigned run_workload(struct qv_thread *thread, const struct workload *load, uint32_t seed,
                             unsigned *passed, unsigned *states)
{
    const struct {
        const char *what;
        void (*co)(void *arg);
        bool (*co_run)(struct task *task, struct run *run);
        bool wanted;
    } kinds[] = {
        {"work", co_task, co_explore_workload, true},
        {"work, EIO", co_task, co_explore_faulty, args.faults > 0},
        {"no flush", co_task, co_explore_liar, true},
        {"faults", co_task_faults, NULL, args.faults > 0},
        {"create", co_task, co_explore_create, !load->raw && !load->backing},
        {"rebuild", co_task, co_explore_rebuild,
         !load->raw && !load->encrypted && load->create.version != 2},
    };
    unsigned failed = 0;

    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        struct task task = {.load = load, .seed = seed, .co_run = kinds[i].co_run};

        if (kinds[i].wanted) {
            bool ok = run_task(thread, &task, kinds[i].what, kinds[i].co);

            *passed += ok;
            failed += !ok;
            *states += task.states;
        }
    }
    return failed;
}

int main(int argc, char **argv)
{
    struct qv_thread *thread;
    unsigned failed = 0, passed = 0, states = 0;

    if (!parse_args(&argc, &argv)) {
        return 2;
    }
    printf("seed %" G_GINT64_FORMAT "\n", args.seed);
    enc_test_nonces_record();            /* through all crashes and copies */
    qv_log_init("crash", QV_LOG_SILENT); /* failing to close is what is asked for */
    thread = qv_thread_new("crash", NULL);
    for (unsigned i = 0; thread != NULL && i < nb_workloads; i++) {
        if (wanted(workloads[i].name)) {
            failed +=
                run_workload(thread, &workloads[i], (uint32_t)args.seed + i, &passed, &states);
        }
    }
    qv_thread_free(thread);
    printf("%u states, %u checks by qemu-img, %" PRIu64 " nonces\n", states, verify_qemu_runs(),
           enc_test_nonces_count());
    printf("[  PASSED  ] %u test(s).\n", passed);
    if (failed > 0) {
        printf("[  FAILED  ] %u test(s).\n", failed);
    }
    return failed > 0 || passed == 0;
}
