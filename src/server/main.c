/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quantavirt-io: the process between a guest and its disks. Started by a supervisor, which passes
 * one end of the control channel as descriptor 3 (control/process.h). Not for use by hand.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/log.h"
#include "control/process.h"
#include "server/server_int.h"

/* One thread of QV_THREADS_MAX is the control thread's; the rest leaves room. */
#define THREADS_MAX 64u

#ifndef __has_feature /* gcc */
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
/* The search for leaks traces the process, which confinement forbids. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

static unsigned usable_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

static bool parse_number(const char *text, long max, unsigned *out)
{
    char *end;
    long value = strtol(text, &end, 10);

    if (*text == '\0' || *end != '\0' || value < 0 || value > max) {
        return false;
    }
    *out = (unsigned)value;
    return true;
}

static bool parse_args(int argc, char **argv, unsigned *threads, unsigned *level)
{
    static const struct option options[] = {{"threads", required_argument, NULL, 't'},
                                            {"log-level", required_argument, NULL, 'l'},
                                            {NULL, 0, NULL, 0}};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if ((c != 't' && c != 'l') ||
            !parse_number(optarg, c == 't' ? (long)THREADS_MAX : QV_LOG_DEBUG,
                          c == 't' ? threads : level)) {
            return false;
        }
    }
    return optind == argc;
}

static bool is_control_socket(int fd)
{
    int type = 0;
    socklen_t len = sizeof(type);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_SEQPACKET;
}

/* Up to 256 disks with 64 queues, two descriptors a queue; and memory for rings of the kernel. */
static void raise_limits(void)
{
    static const int kinds[] = {RLIMIT_NOFILE, RLIMIT_MEMLOCK};

    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        struct rlimit limit;

        if (getrlimit(kinds[i], &limit) == 0) {
            limit.rlim_cur = limit.rlim_max;
            setrlimit(kinds[i], &limit);
        }
    }
}

int main(int argc, char **argv)
{
    unsigned threads = 0;
    unsigned level = QV_LOG_WARN;

    if (!parse_args(argc, argv, &threads, &level) || !is_control_socket(QV_IO_CONTROL_FD)) {
        fputs(QV_IO_PROCESS_NAME ": is started by quantavirt, not by hand\n", stderr);
        return 2;
    }
    qv_log_init(QV_IO_PROCESS_NAME, (enum qv_log_level)level);
    signal(SIGPIPE, SIG_IGN);
    fcntl(QV_IO_CONTROL_FD, F_SETFD, FD_CLOEXEC);
    close_range(QV_IO_CONTROL_FD + 1, ~0u, 0);
    raise_limits();
    if (threads == 0) {
        threads = MIN(usable_cpus(), THREADS_MAX);
    }
    return server_main(QV_IO_CONTROL_FD, threads);
}
