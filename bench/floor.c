/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a request at depth 1 costs at least on this machine, whoever serves it: two processes that
 * wake each other through eventfds, as client and server of a virtqueue do, and nothing else; and
 * one read of 4 KiB. CPU time of one side per round.
 *
 *     floor FILE [FIRST-CPU SECOND-CPU]
 *
 * FILE: at least 64 MiB, read at random places. Without CPUs: both on CPU 1, then on CPUs 1 and 0.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 200000u
#define BLOCK  4096u
#define BLOCKS 16384u

static double now_us(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static void pin(unsigned cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0) {
        perror("floor: cannot pin");
    }
}

static void signal_fd(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) != sizeof(one)) {
        _exit(1);
    }
}

static void wait_fd(int fd)
{
    uint64_t count;

    if (read(fd, &count, sizeof(count)) != sizeof(count)) {
        _exit(1);
    }
}

static void ping_pong(unsigned here, unsigned there)
{
    int ping = eventfd(0, EFD_CLOEXEC), pong = eventfd(0, EFD_CLOEXEC);
    double cpu, wall;
    pid_t child = fork();

    if (child == 0) {
        pin(there);
        for (unsigned i = 0; i < ROUNDS; i++) {
            wait_fd(ping);
            signal_fd(pong);
        }
        _exit(0);
    }
    pin(here);
    cpu = now_us(CLOCK_THREAD_CPUTIME_ID);
    wall = now_us(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < ROUNDS; i++) {
        signal_fd(ping);
        wait_fd(pong);
    }
    cpu = (now_us(CLOCK_THREAD_CPUTIME_ID) - cpu) / ROUNDS;
    wall = (now_us(CLOCK_MONOTONIC) - wall) / ROUNDS;
    printf("wake and be woken, CPUs %u and %u: %6.2f us CPU, %6.2f us in all\n", here, there, cpu,
           wall);
    waitpid(child, NULL, 0);
    close(ping);
    close(pong);
}

static int reads(const char *path)
{
    static char buf[BLOCK] __attribute__((aligned(BLOCK)));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    double cpu = now_us(CLOCK_THREAD_CPUTIME_ID);

    if (fd < 0) {
        perror(path);
        return 1;
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        if (pread(fd, buf, BLOCK, (off_t)(i * UINT64_C(7919) % BLOCKS * BLOCK)) != BLOCK) {
            fprintf(stderr, "floor: %s: too short\n", path);
            return 1;
        }
    }
    printf("read of 4 KiB:                  %6.2f us CPU\n",
           (now_us(CLOCK_THREAD_CPUTIME_ID) - cpu) / ROUNDS);
    close(fd);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 4) {
        fprintf(stderr, "usage: floor FILE [FIRST-CPU SECOND-CPU]\n");
        return 2;
    }
    if (argc == 4) {
        ping_pong((unsigned)strtoul(argv[2], NULL, 10), (unsigned)strtoul(argv[3], NULL, 10));
    } else {
        ping_pong(1, 1);
        ping_pong(1, 0);
    }
    return reads(argv[1]);
}
