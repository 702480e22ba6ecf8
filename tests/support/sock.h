/* SPDX-License-Identifier: Apache-2.0 */
/* UNIX stream sockets for tests of servers, and for fuzzers: so nothing here fails a test itself.
 */
#ifndef TESTS_SUPPORT_SOCK_H
#define TESTS_SUPPORT_SOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

struct sock_address {
    struct sockaddr_un un;
    socklen_t len;
};

/** sock_listen - a socket that listens on a name of the kernel's choice, which goes to @address.
 * -1: failed. */
int sock_listen(struct sock_address *address);

/** sock_connect - a connection; a receive that waits longer than @seconds fails. -1: failed. */
int sock_connect(const struct sock_address *address, unsigned seconds);

/** sock_send - one message of two parts, the second perhaps empty, with @count (at most 64)
 * descriptors. Whether some of it was sent. */
bool sock_send(int fd, const void *header, size_t header_len, const void *payload, size_t len,
               const int *fds, unsigned count);

/** sock_recv - exactly @len bytes; the first descriptor that came along in *@got_fd (else -1), if
 * that is not NULL. Whether they came, and without a descriptor where none is wanted. */
bool sock_recv(int fd, void *buf, size_t len, int *got_fd);

/** sock_drain - reads until the other end has closed. Whether it has, in time. */
bool sock_drain(int fd);

#endif
