/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor's control socket: how commands reach a running VM. A client connects, sends one
 * line of JSON, {"command": …, "arguments": {…}}, and gets one document back and the end of the
 * stream; with "console" the connection becomes the serial line instead.
 *
 *     {"id": 0, "ok": true, "result": {…}}   {"id": 0, "ok": false, "error": {"kind", "message"}}
 *
 * One descriptor may come along with the line: what it is for depends on the command.
 *
 * The socket is its owner's only. One thread, the default main context's.
 */
#ifndef QV_VM_CTL_H
#define QV_VM_CTL_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "vm/place.h"

struct vm_ctl;

/** One request; to be answered once, at any later time, by one of the functions below, which end
 * it. */
struct vm_ctl_request;

typedef void (*vm_ctl_fn)(void *arg, struct vm_ctl_request *request, const char *command,
                          const json_t *args);

/** vm_ctl_new - listens at "control" in the working folder. */
bool vm_ctl_new(vm_ctl_fn fn, void *arg, struct vm_ctl **out, GError **error);

/** vm_ctl_free - stops listening, removes the socket; requests under way may be answered still.
 * NULL is fine. */
void vm_ctl_free(struct vm_ctl *ctl);

/** vm_ctl_reply - success; @result is taken over, NULL: an empty object. */
void vm_ctl_reply(struct vm_ctl_request *request, json_t *result);
/** vm_ctl_refuse - failure. */
void vm_ctl_refuse(struct vm_ctl_request *request, const GError *error);
/** vm_ctl_take - the connection itself, the caller's from now on. */
int vm_ctl_take(struct vm_ctl_request *request);

/** vm_ctl_passed_fd - the descriptor that came along, the caller's from now on; -1: none. */
int vm_ctl_passed_fd(struct vm_ctl_request *request);

/* ---- the client ---- */

/** vm_ctl_connect - sends a request on a new connection; *@fd is where the answer comes. The
 * connection is refused with QV_ERROR_NOT_FOUND when no supervisor listens. */
bool vm_ctl_connect(const struct vm_place *place, const char *command, json_t *args, int *fd,
                    GError **error);

/** vm_ctl_connect_fd - the same; @pass, unless -1, goes along; it stays the caller's. */
bool vm_ctl_connect_fd(const struct vm_place *place, const char *command, json_t *args, int pass,
                       int *fd, GError **error);

/** vm_ctl_answer - waits for the answer on @fd, which stays the caller's. @result: as below. */
bool vm_ctl_answer(int fd, json_t **result, GError **error);

/** vm_ctl_call - sends a request and waits for the answer; @args is taken over. @result: the
 * caller's; may be NULL. */
bool vm_ctl_call(const struct vm_place *place, const char *command, json_t *args, json_t **result,
                 GError **error);

#endif
