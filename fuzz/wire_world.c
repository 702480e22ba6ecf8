/* SPDX-License-Identifier: Apache-2.0 */
#include "wire_world.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"

#define MESSAGES 64
#define FILLED   4096u /* bytes of the guest memory that an input fills */
#define SET_UP   1     /* the switch that asks for a good start */

void wire_world_init(struct wire_world *w, void (*start)(void *arg), void *arg)
{
    qv_log_init("fuzz", QV_LOG_ERROR);
    w->thread = qv_thread_new("fuzz", NULL);
    w->listen_fd = sock_listen(&w->address);
    w->memory = memfd_create("memory", 0);
    w->event = eventfd(0, EFD_NONBLOCK);
    if (w->thread == NULL || w->listen_fd < 0 || ftruncate(w->memory, (off_t)WIRE_MEMORY) < 0) {
        abort();
    }
    w->guest = mmap(NULL, WIRE_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, w->memory, 0);
    if (w->guest == MAP_FAILED) {
        abort();
    }
    qv_thread_call(w->thread, start, arg);
}

void wire_world_run(const struct wire_world *w, const struct wire_talk *talk, const uint8_t *data,
                    size_t size)
{
    uint8_t switches;
    int sock;

    if (size < 1) {
        return;
    }
    switches = *data++;
    size--;
    memset(w->guest, 0, FILLED);
    memcpy(w->guest, data, MIN(size, FILLED));
    sock = sock_connect(&w->address, 0);
    if (sock < 0) {
        abort();
    }
    if (switches & SET_UP) {
        talk->set_up(w, sock, switches);
    }
    for (int i = 0; i < MESSAGES && size >= 4; i++) {
        uint32_t len = (uint32_t)MIN(data[3], size - 4);

        if (!talk->say(sock, data[0], data[1], data + 4, len, talk->fds[data[2] % 4])) {
            break;
        }
        data += 4 + len;
        size -= 4 + len;
    }
    shutdown(sock, SHUT_WR);
    sock_drain(sock);
    close(sock);
}
