/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the process that faces the guest gives up. It works on descriptors that it was given; it
 * opens no file, starts no program and reaches no network. Several fences stand behind one another,
 * because each has a gap: io_uring does work that a system call filter does not see, so an empty
 * root folder and Landlock close the file system to it (Landlock alone leaves UNIX sockets
 * visible), and an empty network namespace the network. Without privileges the namespaces need a
 * user namespace, which some systems forbid; then Landlock and the filter remain.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifdef QV_HAVE_SECCOMP
#include <linux/fs.h>
#include <seccomp.h>
#endif

#include "base/log.h"
#include "base/secret.h"
#include "server/server_int.h"

/* Every right on paths that Landlock knows, none granted anywhere. Open descriptors keep theirs. */
static void close_file_system(void)
{
    static const uint64_t rights[] = {
        0,                                      /* no Landlock */
        (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1, /* 1: all of Linux 5.13 */
        (UINT64_C(1) << 14) - 1,                /* 2: and REFER */
        (UINT64_C(1) << 15) - 1,                /* 3: and TRUNCATE */
    };
    struct landlock_ruleset_attr attr = {0};
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    int fd;

    if (version <= 0) {
        qv_info("no Landlock here: the file system stays visible to io_uring");
        return;
    }
    attr.handled_access_fs = rights[MIN((size_t)version, G_N_ELEMENTS(rights) - 1)];
    fd = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr.handled_access_fs), 0);
    if (fd < 0 || syscall(SYS_landlock_restrict_self, fd, 0) < 0) {
        qv_warn("cannot close the file system: %s", g_strerror(errno));
    }
    qv_close_fd(&fd);
}

/* The root becomes a folder that is deleted: nothing is in it, and nothing can be made there. */
static void empty_root(void)
{
    char dir[] = "/tmp/quantavirt-io-XXXXXX";
    QV_CLEANUP(qv_close_fd) int fd = -1;

    if (mkdtemp(dir) == NULL) {
        qv_info("no empty root folder: %s", g_strerror(errno));
        return;
    }
    fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (rmdir(dir) < 0 || fd < 0 || fchdir(fd) < 0 || chroot(".") < 0) {
        qv_info("no empty root folder: %s", g_strerror(errno));
    }
}

/* Returns whether there are privileges for more. */
static bool close_network(void)
{
    if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0) {
        qv_info("no empty network namespace: %s", g_strerror(errno));
        return false;
    }
    return true;
}

static void drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

    if (syscall(SYS_capset, &header, none) < 0) {
        qv_warn("cannot drop capabilities: %s", g_strerror(errno));
    }
}

#ifdef QV_HAVE_SECCOMP

/* What is allowed, by reason. Anything else fails with EPERM, which libraries cope with. */
static const int allowed[] = {
    /* memory: allocation, stacks, guest memory, locked secrets */
    SCMP_SYS(brk),
    SCMP_SYS(mmap),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(mprotect),
    SCMP_SYS(madvise),
    SCMP_SYS(mlock),
    SCMP_SYS(mlock2),
    SCMP_SYS(munlock),
    /* threads and what libc needs to run them (clone: see below) */
    SCMP_SYS(futex),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(set_tid_address),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(sched_setaffinity),
    SCMP_SYS(membarrier),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(gettid),
    SCMP_SYS(getpid),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(getrandom),
    /* signals to ourselves: SIGTERM's descriptor, abort() */
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(tgkill),
    SCMP_SYS(signalfd4),
    /* time */
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(alarm),
    SCMP_SYS(setitimer),
    /* I/O on descriptors we hold */
    SCMP_SYS(read),
    SCMP_SYS(readv),
    SCMP_SYS(pread64),
    SCMP_SYS(preadv),
    SCMP_SYS(preadv2),
    SCMP_SYS(write),
    SCMP_SYS(writev),
    SCMP_SYS(pwrite64),
    SCMP_SYS(pwritev),
    SCMP_SYS(pwritev2),
    SCMP_SYS(fdatasync),
    SCMP_SYS(fsync),
    SCMP_SYS(sync_file_range),
    SCMP_SYS(fallocate),
    SCMP_SYS(ftruncate),
    SCMP_SYS(lseek),
    SCMP_SYS(fstat),
    SCMP_SYS(statx),
    SCMP_SYS(fstatfs),
    SCMP_SYS(copy_file_range),
    SCMP_SYS(fadvise64),
    SCMP_SYS(fcntl),
    SCMP_SYS(dup),
    SCMP_SYS(close),
    /* the engines: io_uring, Linux AIO */
    SCMP_SYS(io_uring_setup),
    SCMP_SYS(io_uring_enter),
    SCMP_SYS(io_uring_register),
    SCMP_SYS(io_setup),
    SCMP_SYS(io_submit),
    SCMP_SYS(io_getevents),
    SCMP_SYS(io_pgetevents),
    SCMP_SYS(io_cancel),
    SCMP_SYS(io_destroy),
    /* the event loop */
    SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_pwait2),
    SCMP_SYS(eventfd2),
    SCMP_SYS(timerfd_create),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    /* sockets we were given, and those accepted from them; none can be made or connected */
    SCMP_SYS(accept4),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendmsg),
    SCMP_SYS(recvfrom),
    SCMP_SYS(sendto),
    SCMP_SYS(shutdown),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    /* memory shared with the hypervisor so that a restarted process finds requests in flight */
    SCMP_SYS(memfd_create),
};

/* What only an attacker would try ends the process. */
static const int fatal[] = {
    SCMP_SYS(execve),       SCMP_SYS(execveat),          SCMP_SYS(ptrace),
    SCMP_SYS(socket),       SCMP_SYS(connect),           SCMP_SYS(process_vm_readv),
    SCMP_SYS(bpf),          SCMP_SYS(process_vm_writev), SCMP_SYS(init_module),
    SCMP_SYS(finit_module), SCMP_SYS(kexec_load),        SCMP_SYS(mount),
    SCMP_SYS(pidfd_getfd),  SCMP_SYS(userfaultfd),       SCMP_SYS(keyctl),
};

static const unsigned long ioctls[] = {
    FIONBIO,    BLKGETSIZE64, BLKSSZGET, BLKPBSZGET,    BLKDISCARD,
    BLKZEROOUT, BLKIOMIN,     BLKIOOPT,  BLKROTATIONAL,
};

/* Calls that are allowed with some arguments only: argument number @arg, masked, has this value. */
static const struct {
    int call;
    struct scmp_arg_cmp when;
} conditional[] = {
    /* threads, never processes */
    {SCMP_SYS(clone),
     {.arg = 0, .op = SCMP_CMP_MASKED_EQ, .datum_a = CLONE_THREAD, .datum_b = CLONE_THREAD}},
    /* fstat() of newer C libraries */
    {SCMP_SYS(newfstatat),
     {.arg = 3, .op = SCMP_CMP_MASKED_EQ, .datum_a = AT_EMPTY_PATH, .datum_b = AT_EMPTY_PATH}},
    /* reading limits; to change them another argument is set */
    {SCMP_SYS(prlimit64), {.arg = 2, .op = SCMP_CMP_EQ, .datum_a = 0}},
    /* names of threads */
    {SCMP_SYS(prctl), {.arg = 0, .op = SCMP_CMP_EQ, .datum_a = PR_SET_NAME}},
};

/* Returns 0 or -errno. */
static int add_conditional(scmp_filter_ctx ctx)
{
    int err = 0;

    for (size_t i = 0; i < G_N_ELEMENTS(ioctls) && err == 0; i++) {
        const struct scmp_arg_cmp when = {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = ioctls[i]};

        err = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, &when);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(conditional) && err == 0; i++) {
        err = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, conditional[i].call, 1,
                                     &conditional[i].when);
    }
    if (err == 0) { /* its flags are in memory, out of the filter's sight: libc uses clone then */
        err = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    }
    return err;
}

static bool filter_calls(void)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int err = ctx == NULL ? -ENOMEM : 0;

    for (size_t i = 0; i < G_N_ELEMENTS(allowed) && err == 0; i++) {
        err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(fatal) && err == 0; i++) {
        err = seccomp_rule_add(ctx, SCMP_ACT_KILL_PROCESS, fatal[i], 0);
    }
    if (err == 0) {
        err = add_conditional(ctx);
    }
    if (err == 0) {
        err = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* binary tree: I/O calls often */
    }
    if (err == 0) {
        err = seccomp_load(ctx);
    }
    if (ctx != NULL) {
        seccomp_release(ctx);
    }
    if (err < 0) {
        qv_warn("system calls are not filtered: %s", g_strerror(-err));
    }
    return err == 0;
}

#else

static bool filter_calls(void)
{
    qv_warn("system calls are not filtered: built without libseccomp");
    return false;
}

#endif

bool server_confine(void)
{
    qv_secret_forbid_dumps(); /* data keys may be in memory, and the guest's data is */
    if (close_network()) {
        empty_root();
    }
    drop_capabilities();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        qv_warn("cannot give up new privileges: %s", g_strerror(errno));
    }
    close_file_system();
    return filter_calls();
}
