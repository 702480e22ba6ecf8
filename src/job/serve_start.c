/* SPDX-License-Identifier: Apache-2.0 */
/* Starting what serves: our I/O process for guests, nbdkit with our plugin for NBD. */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "base/log.h"
#include "job/attach.h"
#include "job/serve_int.h"

#define PLUGIN_NAME "nbdkit-quantavirt-plugin.so"

/* Where nbdkit finds the descriptors it is given: above all that this process has open. */
#define NBD_FIRST_FD 200

static unsigned usable_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

static int log_level(void)
{
    for (int level = QV_LOG_DEBUG; level > QV_LOG_ERROR; level--) {
        if (qv_log_enabled((enum qv_log_level)level)) {
            return level;
        }
    }
    return QV_LOG_ERROR;
}

static struct qv_control_handler handler_of(struct serve *s)
{
    return (struct qv_control_handler){.event = serve_event, .closed = serve_closed, .arg = s};
}

/* ---- our I/O process: vhost-user-blk, vfio-user ---- */

static bool add_disk(struct serve *s, const struct serve_image *image, GError **error)
{
    struct job_attach how = {.id = image->id,
                             .cache = s->opts->cache,
                             .io = s->opts->io,
                             .discard = s->opts->discard,
                             .snapshot = s->opts->snapshot,
                             .on_error = "report",
                             .on_enospc = "report"};
    QV_CLEANUP(job_attach_args_clear) struct job_attach_args a = {0};

    return job_attach_args(image->image, &how, &a, error) &&
           qv_control_client_call(s->client, "disk-add", a.args, a.fds, a.nfds, -1, NULL, error);
}

static bool add_disks(struct serve *s, GError **error)
{
    for (unsigned i = 0; i < s->count; i++) {
        if (!add_disk(s, &s->images[i], error)) {
            g_prefix_error(error, "%s: ", s->images[i].image->record->name);
            return false;
        }
    }
    return true;
}

/* The disks of a controller, each in the slot of its number. */
static json_t *disks_json(const struct serve *s)
{
    json_t *disks = json_array();

    for (unsigned i = 0; i < s->count; i++) {
        g_autofree char *identity =
            g_compute_checksum_for_string(G_CHECKSUM_SHA256, s->images[i].image->record->path, -1);

        json_array_append_new(disks, json_pack("{s:s, s:i, s:s}", "disk", s->images[i].id, "slot",
                                               (int)i, "identity", identity));
    }
    return disks;
}

static bool add_export(struct serve *s, int listen_fd, GError **error)
{
    json_t *args = json_pack("{s:s, s:s, s:i, s:i}", "id", "export", "protocol", s->opts->protocol,
                             "fd", 0, "queues", (int)s->opts->queues);

    if (s->opts->controller != NULL) {
        json_object_set_new(args, "controller", json_string(s->opts->controller));
        json_object_set_new(args, "doorbell_page", json_boolean(s->opts->doorbell_page));
        json_object_set_new(args, "serial", json_string("QUANTAVIRT"));
        json_object_set_new(args, "disks", disks_json(s));
    } else {
        json_object_set_new(args, "disk", json_string(s->images[0].id));
    }
    return qv_control_client_call(s->client, "export-add", args, &listen_fd, 1, -1, NULL, error);
}

bool serve_start_guest(struct serve *s, GError **error)
{
    struct qv_control_handler handler = handler_of(s);
    struct qv_io_process_opts opts = {.threads = MIN(usable_cpus(), s->opts->queues),
                                      .stderr_fd = -1,
                                      .log_level = log_level(),
                                      .handler = &handler};
    QV_CLEANUP(qv_close_fd) int listen_fd = -1;

    /* Our copy of listen_fd is closed on return: connecting fails when the helper is gone. */
    return qv_listen_unix(s->opts->socket, &listen_fd, &s->at, error) &&
           qv_io_process_start(&opts, &s->pid, &s->client, error) && add_disks(s, error) &&
           add_export(s, listen_fd, error);
}

/* ---- nbd ---- */

static bool find_nbdkit(char **path, GError **error)
{
    static const char *const usual[] = {"/usr/sbin/nbdkit", "/usr/local/sbin/nbdkit"};

    *path = g_find_program_in_path("nbdkit");
    for (size_t i = 0; *path == NULL && i < G_N_ELEMENTS(usual); i++) {
        if (access(usual[i], X_OK) == 0) {
            *path = g_strdup(usual[i]);
        }
    }
    return *path != NULL || qv_fail(error, QV_ERROR_FAILED, "nbdkit: is not installed");
}

static void add_image(GPtrArray *argv, const struct qv_image_handle *h,
                      const struct job_serve_opts *opts, int fd)
{
    const char *cache = opts->cache != NULL ? opts->cache : "none";

    g_ptr_array_add(argv, g_strdup_printf("fd=%d", fd));
    g_ptr_array_add(argv, g_strdup_printf("format=%s", h->record->format));
    g_ptr_array_add(argv, g_strdup_printf("name=%s", h->record->name));
    g_ptr_array_add(argv, g_strdup_printf("readonly=%s", h->readonly ? "true" : "false"));
    g_ptr_array_add(argv, g_strdup_printf("cache=%s", cache));
    g_ptr_array_add(argv, g_strdup_printf("cache-required=%s",
                                          g_strcmp0(opts->cache, "none") == 0 ? "true" : "false"));
    g_ptr_array_add(argv, g_strdup_printf("io=%s", opts->io != NULL ? opts->io : "io_uring"));
}

/* The descriptors of one image: itself, its data file, the pipe with its data key (*@key_fd: made
 * here, the caller's). */
static bool add_fds(GPtrArray *argv, const struct qv_image_handle *h, int *fds, unsigned *nfds,
                    GArray *key_fds, GError **error)
{
    if (*nfds + 3 > QV_CONTROL_FDS_MAX) {
        return qv_fail(error, QV_ERROR_UNSUPPORTED, "%s: too many images behind it",
                       h->record->name);
    }
    fds[(*nfds)++] = h->fd;
    if (h->data_file != NULL) {
        g_ptr_array_add(argv, g_strdup_printf("data-fd=%d", NBD_FIRST_FD + (int)*nfds));
        fds[(*nfds)++] = h->data_file->fd;
    }
    if (h->dek != NULL) {
        int fd = qv_control_secret_send(h->dek, error);

        if (fd < 0) {
            return false;
        }
        g_array_append_val(key_fds, fd);
        g_ptr_array_add(argv, g_strdup_printf("key-fd=%d", NBD_FIRST_FD + (int)*nfds));
        fds[(*nfds)++] = fd;
    }
    return true;
}

/* The command line; the descriptors of the images behind @fds[0], which is the control channel. */
static GPtrArray *nbdkit_argv(const struct serve *s, const char *plugin, int *fds, unsigned *nfds,
                              GArray *key_fds, GError **error)
{
    /* blocksize: for clients that ask for less than a sector. */
    static const char *const fixed[] = {"nbdkit", "--foreground", "--exit-with-parent",
                                        "--filter=blocksize", "--unix"};
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);

    for (size_t i = 0; i < G_N_ELEMENTS(fixed); i++) {
        g_ptr_array_add(argv, g_strdup(fixed[i]));
    }
    g_ptr_array_add(argv, g_canonicalize_filename(s->opts->socket, NULL));
    g_ptr_array_add(argv, g_strdup(plugin));
    for (const struct qv_image_handle *h = s->images[0].image; h != NULL; h = h->backing) {
        add_image(argv, h, s->opts, NBD_FIRST_FD + (int)*nfds);
        if (h == s->images[0].image && s->opts->snapshot != NULL) {
            g_ptr_array_add(argv, g_strdup_printf("snapshot=%s", s->opts->snapshot));
        }
        if (!add_fds(argv, h, fds, nfds, key_fds, error)) {
            return NULL;
        }
    }
    g_ptr_array_add(argv, g_strdup_printf("discard=%s", s->opts->discard ? "true" : "false"));
    g_ptr_array_add(argv, g_strdup_printf("threads=%u", MIN(usable_cpus(), 4u)));
    g_ptr_array_add(argv, g_strdup_printf("control-fd=%d", NBD_FIRST_FD));
    g_ptr_array_add(argv, g_strdup("minblock=512"));
    g_ptr_array_add(argv, NULL);
    return g_steal_pointer(&argv);
}

static void close_key_fds(GArray **fds)
{
    for (guint i = 0; i < (*fds)->len; i++) {
        close(g_array_index(*fds, int, i));
    }
    g_array_unref(*fds);
}

static bool start_nbdkit(struct serve *s, int control, GError **error)
{
    g_autofree char *nbdkit = NULL;
    g_autofree char *plugin = NULL;
    g_autoptr(GPtrArray) argv = NULL;
    QV_CLEANUP(close_key_fds) GArray *key_fds = g_array_new(FALSE, FALSE, sizeof(int));
    int fds[QV_CONTROL_FDS_MAX] = {control};
    struct qv_helper helper = {
        .fds = fds, .nfds = 1, .first_target = NBD_FIRST_FD, .stderr_fd = -1};

    if (!find_nbdkit(&nbdkit, error) || !qv_helper_find(PLUGIN_NAME, &plugin, error)) {
        return false;
    }
    argv = nbdkit_argv(s, plugin, fds, &helper.nfds, key_fds, error);
    if (argv == NULL) {
        return false;
    }
    helper.path = nbdkit;
    helper.argv = (char *const *)argv->pdata;
    s->nbdkit_started = qv_helper_start(&helper, &s->pid, error);
    return s->nbdkit_started;
}

bool serve_start_nbd(struct serve *s, GError **error)
{
    struct qv_control_handler handler = handler_of(s);
    QV_CLEANUP(qv_close_fd) int ours = -1;
    QV_CLEANUP(qv_close_fd) int theirs = -1;

    if (!qv_listen_check(s->opts->socket, error) || !qv_control_pair(&ours, &theirs, error) ||
        !start_nbdkit(s, theirs, error)) {
        return false;
    }
    qv_close_fd(&theirs);
    theirs = -1;
    s->client = qv_control_client_new(qv_steal_fd(&ours), &handler);
    /* Answered when the image is open and the socket is there. */
    if (!qv_control_client_call(s->client, "hello", NULL, NULL, 0, -1, NULL, error)) {
        if (s->failed != NULL) { /* it said why */
            g_clear_error(error);
            g_propagate_error(error, g_steal_pointer(&s->failed));
        } else {
            g_prefix_error(error, "nbdkit: ");
        }
        return false;
    }
    return qv_listen_adopt(s->opts->socket, &s->at, error);
}
