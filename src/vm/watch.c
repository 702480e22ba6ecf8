/* SPDX-License-Identifier: Apache-2.0 */
/* A person at a guest's serial line. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "base/error.h"
#include "catalog/vms.h"
#include "vm/console.h"
#include "vm/ctl.h"
#include "vm/place.h"
#include "vm/vm.h"

#define LEAVE 0x1d /* Ctrl-] */

/* A terminal that passes every key on; restored by terminal_restore. */
struct terminal {
    int fd; /* -1: none */
    struct termios before;
};

static void terminal_restore(struct terminal *t)
{
    if (t->fd >= 0) {
        tcsetattr(t->fd, TCSADRAIN, &t->before);
    }
}

static bool terminal_raw(int fd, struct terminal *out, GError **error)
{
    struct termios raw;

    if (fd < 0) {
        return true;
    }
    if (tcgetattr(fd, &out->before) != 0) {
        return qv_fail_errno(error, errno, "terminal");
    }
    raw = out->before;
    cfmakeraw(&raw);
    if (tcsetattr(fd, TCSADRAIN, &raw) != 0) {
        return qv_fail_errno(error, errno, "terminal");
    }
    out->fd = fd;
    return true;
}

static bool write_all(int fd, const char *buf, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, buf, len);

        if (n < 0 && errno != EINTR) {
            return false;
        }
        if (n > 0) {
            buf += n;
            len -= (size_t)n;
        }
    }
    return true;
}

/* Passes keys on; false when the user leaves. */
static bool pass_keys(int in, int line)
{
    char buf[256];
    ssize_t n = read(in, buf, sizeof(buf));
    const char *leave;

    if (n <= 0) {
        return n < 0 && errno == EINTR;
    }
    leave = memchr(buf, LEAVE, (size_t)n);
    if (leave != NULL) {
        n = leave - buf;
    }
    return write_all(line, buf, (size_t)n) && leave == NULL;
}

/* Until the line ends or the user leaves. */
static bool relay(int line, int in, int out, GError **error)
{
    char buf[16384];

    for (;;) {
        struct pollfd p[2] = {{.fd = line, .events = POLLIN}, {.fd = in, .events = POLLIN}};
        ssize_t n;

        if (poll(p, 2, -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return qv_fail_errno(error, errno, "console");
        }
        if (p[1].revents != 0 && !pass_keys(in, line)) {
            return true;
        }
        if (p[0].revents == 0) {
            continue;
        }
        n = recv(line, buf, sizeof(buf), 0);
        if (n == 0 || (n < 0 && errno == ECONNRESET)) {
            return true;
        }
        if (n > 0 && !write_all(out, buf, (size_t)n)) {
            return qv_fail_errno(error, errno, "console");
        }
    }
}

bool qv_vm_console(struct qv_catalog *catalog, const char *name, int in, int out, GError **error)
{
    QV_CLEANUP(vm_place_clear) struct vm_place place = VM_PLACE_NONE;
    QV_CLEANUP(qv_vm_config_freep) struct qv_vm_config *config = NULL;
    QV_CLEANUP(terminal_restore) struct terminal terminal = {.fd = -1};
    QV_CLEANUP(qv_close_fd) int line = -1;
    g_autoptr(GError) why = NULL;

    if (!qv_catalog_vm_load(catalog, name, &config, error)) {
        return false;
    }
    if (!config->serial_console) {
        return qv_fail(error, QV_ERROR_FAILED, "%s: has no serial console", name);
    }
    vm_place_init(catalog, name, &place);
    if (!vm_ctl_connect(&place, "console", NULL, &line, &why)) {
        if (g_error_matches(why, QV_ERROR, QV_ERROR_NOT_FOUND)) {
            return vm_console_cat(place.dir, out, error);
        }
        g_propagate_prefixed_error(error, g_steal_pointer(&why), "%s: ", name);
        return false;
    }
    return terminal_raw(in, &terminal, error) && relay(line, in, out, error);
}
